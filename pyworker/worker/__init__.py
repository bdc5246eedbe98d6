"""Worker: runs the app. Inside one, `pyworker.worker.app`, `.id` and `.generation` say which it is.

Standard library only, except engines/, which imports the HTTP libraries that the engine finder provides.
"""

from __future__ import annotations

app: str | None = None
id: int | None = None  # noqa: A001  the name Node's cluster.worker.id made standard
generation: int | None = None
