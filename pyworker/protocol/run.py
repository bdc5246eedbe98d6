"""What `pyworker run` hands to the guardian that it becomes, and the guardian to every daemon: a sealed memfd.

It is to a foreground pyworker what apps.json is to one in the background: it says what is wanted, in no file.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from pyworker.record import record


@record
class RunSpec:
    """Content of the memfd `run`."""

    request: dict[str, Any] = field(default_factory=dict)  # a control.Start: what runs, with the options of the command
    home: str = ""  # absolute, writable and ours; "" = there is none: no control socket, nothing is written anywhere
    logs: Literal["short", "json", "plain"] = "short"
    probe: str = ""  # address of the probe endpoint
    lame_duck: float = 0.0  # seconds from the wish to stop until the drain: readyz says no, all else goes on
