"""CLI top: the bytes that a terminal sends, as keys. Pure."""

from __future__ import annotations

_NAMES = {
    b"\x1b": "esc", b"\r": "enter", b"\n": "enter", b"\t": "tab", b"\x7f": "backspace", b"\x08": "backspace",
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[C": "right", b"\x1b[D": "left", b"\x1b[H": "home", b"\x1b[F": "end",
    b"\x1bOA": "up", b"\x1bOB": "down", b"\x1bOC": "right", b"\x1bOD": "left", b"\x1bOH": "home", b"\x1bOF": "end",
    b"\x1b[1~": "home", b"\x1b[4~": "end", b"\x1b[5~": "pageup", b"\x1b[6~": "pagedown", b"\x1b[Z": "backtab",
}  # fmt: skip


def keys(data: bytes) -> tuple[list[str], bytes]:
    """Return the keys in what was read, and what is the beginning of one more.

    The Escape key sends the byte that begins a sequence: alone at the end it is kept, and the caller takes it for
    the key when nothing follows.
    """
    found = []
    while data:
        if data[0] == 0x1B:
            end = _sequence(data)
            if end == 0:
                break
            name = _NAMES.get(data[:end], "")
            if name:
                found.append(name)
        elif data[0] < 0x80:
            end = 1
            name = _NAMES.get(data[:1], "")
            if name or data[0] >= 0x20:
                found.append(name or chr(data[0]))
        else:
            end = 2 if data[0] < 0xE0 else 3 if data[0] < 0xF0 else 4
            if len(data) < end:
                break
            found += data[:end].decode("utf-8", "ignore")
        data = data[end:]
    return found, data


def _sequence(data: bytes) -> int:
    """Return how long the escape sequence at the beginning is, 0 when it is not there whole."""
    if len(data) < 2:
        return 0
    if data[1] == 0x1B:  # Escape, and one more
        return 1
    if data[1] == ord("O"):
        return 3 if len(data) > 2 else 0
    if data[1] != ord("["):
        return 2  # Alt and a key
    for i in range(2, len(data)):
        if 0x40 <= data[i] <= 0x7E:
            return i + 1
    return len(data) if len(data) > 32 else 0  # no key is as long as that
