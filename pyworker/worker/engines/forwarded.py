"""Worker: whose X-Forwarded-* headers are believed, and what they say. Pure."""

from __future__ import annotations

import functools
import ipaddress
import re

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SCHEMES = {b"http": "http", b"https": "https", b"ws": "http", b"wss": "https"}
_WORD = re.compile(r"[!#-~]{1,64}\Z")  # what is none could pose as further fields of the access log


class Trust:
    """The peers of `forwarded_allow_ips`: addresses, networks, "unix" (any Unix-socket peer) or "*" (everybody)."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.everybody = "*" in allowed
        self.unix = self.everybody or "unix" in allowed
        self._networks = tuple(
            ipaddress.ip_network(entry, strict=False) for entry in allowed if entry not in ("*", "unix")
        )
        self.host = functools.lru_cache(maxsize=1024)(self._host)

    def _host(self, host: str) -> bool:
        """True when the peer with this address is believed."""
        if self.everybody:
            return True
        address = parse_address(host)
        return address is not None and any(address in network for network in self._networks)

    def client(self, values: list[bytes]) -> tuple[str, int] | None:
        """Return the client that X-Forwarded-For names: the last hop that is not one of ours, else the first.

        None: it names nobody; a proxy may pass on what its client has said.
        """
        hops = [hop.strip() for hop in b",".join(values).decode("latin-1").split(",") if hop.strip()]
        if not hops:
            return None
        chosen = hops[0]
        if not self.everybody:
            for hop in reversed(hops):
                if len(hop) > 64 or not self.host(split_port(hop)[0]):
                    chosen = hop
                    break
        return split_port(chosen) if _WORD.match(chosen) else None


def split_port(hop: str) -> tuple[str, int]:
    """Split "1.2.3.4:80", "[::1]:80", "::1" or "1.2.3.4" into host and port; 0 = no port given."""
    if hop.startswith("["):
        host, _, rest = hop[1:].partition("]")
        port = rest.removeprefix(":")
    elif hop.count(":") == 1:
        host, _, port = hop.partition(":")
    else:
        host, port = hop, ""
    return host, int(port) if port.isascii() and port.isdigit() and len(port) < 6 else 0


def parse_address(host: str) -> Address | None:
    """Parse an address; an IPv4 address in IPv6 clothes (::ffff:1.2.3.4) is IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def plain_host(host: str) -> str:
    """Return a peer's address as an app expects it: ::ffff:1.2.3.4 of a dual-stack listener is 1.2.3.4."""
    return host[7:] if host.startswith("::ffff:") and "." in host else host
