"""Logger: its own words, for logs/pyworker.log (stderr)."""

from __future__ import annotations

from functools import partial

from pyworker.unix import stderr

say = partial(stderr.say, "logger")
