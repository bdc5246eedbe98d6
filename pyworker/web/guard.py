"""Web: who may ask. Pure.

Three walls: a token in a header (a page of another site cannot send it, and no cookie stands in for it); the Host
header must be a name of ours (so that no other name can be made to mean this address); a request that changes something
must come from our own page if it says where it comes from.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping

from pyworker.record import field, record


@record
class Guard:
    """`token` "" = none is asked for. `hosts`: names (without port) under which the dashboard may be called."""

    token: str
    hosts: frozenset[str] = field(default_factory=frozenset)

    def knows_host(self, host: str) -> bool:
        """True for a Host header that means us."""
        name = _without_port(host).lower()
        return name == "localhost" or name in self.hosts or _is_loopback(name)

    def has_token(self, headers: Mapping[str, str]) -> bool:
        """True if no token is asked for, or this one is right."""
        if not self.token:
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.token.encode())

    def same_origin(self, headers: Mapping[str, str]) -> bool:
        """True for a request of our own page, or of a program that says nothing about where it comes from."""
        if headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return False
        origin = headers.get("origin")
        return origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()


def is_loopback(host: str) -> bool:
    """True for an address that only this machine can reach."""
    return host == "localhost" or _is_loopback(host.strip("[]"))


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
