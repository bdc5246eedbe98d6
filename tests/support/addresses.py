"""What addresses a test may listen on here."""

from __future__ import annotations

import socket


def has_ipv6() -> bool:
    """`socket.has_ipv6` says how Python was compiled; a container's kernel may still have no ::1."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True
