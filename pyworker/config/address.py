"""Addresses of `bind`: text -> Address. Pure and standard library only; it looks up no name and opens nothing.

Forms: "host:port", ":port" (every IPv4 address of this machine, 0.0.0.0), "[::1]:port" (IPv6 only), "unix:/path".
"""

from __future__ import annotations

import ipaddress
import re
from typing import Literal

from pyworker.errors import Hinted
from pyworker.record import record

EVERY = ("0.0.0.0", "::")  # of one family: all hosts of this machine
MAX_LISTENERS = 64  # of one app: each is a descriptor of guardian and daemon, and a worker may ask for them
MAX_UNIX_PATH = 107  # sun_path of sockaddr_un, less the closing NUL: unix(7)
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*\.?\Z")


class AddressError(Hinted):
    """Not an address."""


@record
class Address:
    """Where to listen. A host that is a name (localhost) has family "inet": whoever listens resolves it, once."""

    family: Literal["inet", "inet6", "unix"]
    host: str = ""
    port: int = 0  # 0: the kernel picks one
    path: str = ""  # unix only

    def __str__(self) -> str:
        match self.family:
            case "unix":
                return f"unix:{self.path}"
            case "inet6":
                return f"[{self.host}]:{self.port}"
            case "inet":
                return f"{self.host}:{self.port}"


def collide(one: Address, other: Address) -> bool:
    """Whether both cannot be listened on at once, as far as can be told from them: no name is looked up."""
    if one.family == "unix" or one == other:
        return one == other and (one.family == "unix" or one.port != 0)
    is_wide = one.host in EVERY or other.host in EVERY
    return one.family == other.family and one.port == other.port != 0 and is_wide


def is_numeric(host: str) -> bool:
    """Whether it is an IP address (IPv6: "fe80::1%eth0", too), so that no resolver is asked."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65535


def parse_bind(text: str) -> Address:
    """Return the address that `text` stands for; raise AddressError with a hint."""
    if text.startswith("unix:"):
        return _unix(text.removeprefix("unix:"))
    if text.startswith("@"):
        raise _abstract()
    if text.startswith(("/", "./", "../")):
        raise AddressError(f'"{text}" is not an address', f'a Unix socket is written "unix:{text}"')
    if text.startswith(("fd://", "systemd:")):
        raise AddressError(f'"{text}": inherited sockets are not available in this version', 'use "host:port"')
    scheme, separator, rest = text.partition("://")
    if separator:
        message = f'"{text}" is a URL, not an address'
        raise AddressError(message, f'did you mean "{rest.split("/")[0]}"?' if rest and scheme else "")
    if "${" in text:
        hint = "no variables are filled in here; without bind an app listens on $PORT; or: pyworker start -b ADDRESS"
        raise AddressError(f'"{text}" is not an address', hint)
    host, colon, port = text.rpartition(":")
    if not colon:
        meant = f":{_port(text, text)}" if text.isdecimal() else f"{text}:8000"
        raise AddressError(f'"{text}" has no port', f'did you mean "{meant}"?' if text else "")
    if host.startswith("[") and port.endswith("]"):
        raise AddressError(f'"{text}" has no port', f'did you mean "{text}:8000"?')
    return _internet(text, host, _port(text, port))


def _unix(path: str) -> Address:
    if path.startswith("//"):  # unix:///run/x is how URLs have it
        path = "/" + path.lstrip("/")
    if not path or path.endswith("/"):
        raise AddressError(f'"unix:{path}" names no socket file', 'for example "unix:/run/api.sock"')
    if "\0" in path or path.startswith("@"):
        raise _abstract()
    return Address("unix", path=path)


def _abstract() -> AddressError:
    return AddressError("abstract Unix sockets are not supported", 'name a file: "unix:/run/api.sock"')


def _port(text: str, port: str) -> int:
    if not is_port(port):
        raise AddressError(f'"{text}": the port must be a number from 0 to 65535', "")
    return int(port)


def _internet(text: str, host: str, port: int) -> Address:
    if not host:
        return Address("inet", "0.0.0.0", port)
    if host == "*":
        message = f'"{text}" is not an address'
        raise AddressError(message, f'all IPv4 addresses are ":{port}", all IPv6 ones "[::]:{port}"')
    if host.startswith("[") and host.endswith("]"):
        try:
            ipv6 = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise AddressError(f'"{host[1:-1]}" is not an IPv6 address', 'for example "[::1]:8000"') from None
        if ipv6.ipv4_mapped:  # an IPv6 socket takes IPv6 only
            raise AddressError(f'"{text}" is an IPv4 address', f'did you mean "{ipv6.ipv4_mapped}:{port}"?')
        return Address("inet6", str(ipv6), port)
    if ":" in host:
        host = host.strip("[]")
        raise AddressError(f'"{text}" is not an address', f'an IPv6 address goes into brackets: "[{host}]:{port}"')
    if host == "0":
        raise AddressError(f'"{text}" is not an address', f'all IPv4 addresses are ":{port}"')
    if re.fullmatch(r"[0-9.]+", host):
        try:
            return Address("inet", str(ipaddress.IPv4Address(host)), port)
        except ValueError:
            raise AddressError(f'"{host}" is not an IPv4 address', 'for example "127.0.0.1:8000"') from None
    if len(host) > 253 or not _HOST_NAME.match(host):
        raise AddressError(f'"{host}" is not a host name', 'for example "127.0.0.1:8000"')
    return Address("inet", host, port)
