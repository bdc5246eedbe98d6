"""How many workers: what `scale api=8`, `+2`, `-1` and `auto` mean. Pure."""

from __future__ import annotations

MAX_WORKERS = 1000


def scaled(current: int, change: str, auto: int) -> int | None:
    """Return the number of workers that a change asks for (it may be above MAX_WORKERS), None when it is not understood.

    `current` is the number wanted now, `auto` what "auto" means on this machine. Never below 0.
    """
    text = change.strip()
    if text == "auto":
        return auto
    sign = {"+": 1, "-": -1}.get(text[:1], 0)
    digits = text[1:] if sign else text
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 6:
        return None
    return max(0, current + sign * int(digits) if sign else int(digits))
