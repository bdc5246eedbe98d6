"""bind addresses: what is one, what is not, and what the hint says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyworker.config.address import Address, AddressError, collide, parse_bind


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address("inet", "127.0.0.1", 8000)),
        (":8000", Address("inet", "0.0.0.0", 8000)),
        ("localhost:80", Address("inet", "localhost", 80)),
        ("my-host.example.org:0", Address("inet", "my-host.example.org", 0)),
        ("[::1]:8000", Address("inet6", "::1", 8000)),
        ("[0:0:0:0:0:0:0:0]:1", Address("inet6", "::", 1)),
        ("unix:/run/api.sock", Address("unix", path="/run/api.sock")),
        ("unix:///run/api.sock", Address("unix", path="/run/api.sock")),
        ("unix:api.sock", Address("unix", path="api.sock")),
    ],
)
def test_address_is_read(text: str, address: Address) -> None:
    assert parse_bind(text) == address
    assert parse_bind(str(address)) == address


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("8000", ':8000"'),
        ("localhost", "localhost:8000"),
        ("", ""),
        ("/run/api.sock", "unix:/run/api.sock"),
        ("http://127.0.0.1:8000/", '"127.0.0.1:8000"'),
        ("*:8000", ":8000"),
        ("::1:8000", '"[::1]:8000"'),
        ("[::1:8000", '"[::1]:8000"'),
        ("[::1]", '"[::1]:8000"'),
        (":${PORT}", "listens on $PORT"),
        ("127.0.0.1:http", ""),
        ("127.0.0.1:65536", ""),
        ("127.0.0.1:-1", ""),
        ("127.0.0.1:٣", ""),
        ("256.0.0.1:80", "127.0.0.1"),
        ("[::g]:80", "[::1]"),
        ("my host:80", "127.0.0.1"),
        ("unix:", "unix:/run"),
        ("unix:/run/", "unix:/run"),
        ("unix:@abstract", "name a file"),
        ("@abstract", "name a file"),
        ("@abstract:80", "name a file"),
        ("0:8000", '":8000"'),
        ("[::ffff:127.0.0.1]:8000", '"127.0.0.1:8000"'),
        ("fd://3", "host:port"),
    ],
)
def test_what_is_no_address_is_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_bind(text)
    assert hint in caught.value.hint


@given(st.text())
def test_any_text_is_an_address_or_an_address_error(text: str) -> None:
    try:
        address = parse_bind(text)
    except AddressError:
        return
    assert parse_bind(str(address)) == address


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (":80", "127.0.0.1:80", False),
        ("[::]:80", "[::1]:80", False),
        ("127.0.0.1:80", "127.0.0.1:80", False),
        ("unix:/run/x", "unix:/run/x", False),
        (":80", "[::]:80", True),
        (":80", "127.0.0.1:81", True),
        ("127.0.0.1:80", "127.0.0.2:80", True),
        (":0", ":0", True),
        ("unix:/run/x", "unix:/run/y", True),
    ],
)
def test_whether_two_addresses_can_be_had_at_once(one: str, other: str, both: bool) -> None:
    assert collide(parse_bind(one), parse_bind(other)) is not both
    assert collide(parse_bind(other), parse_bind(one)) is not both
