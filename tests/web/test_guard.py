from __future__ import annotations

import pytest

from pyworker.web.guard import Guard, is_loopback

GUARD = Guard("secret-token", frozenset({"ops.example.com", "10.0.0.5"}))


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:8700", True), ("localhost:8700", True), ("LOCALHOST", True), ("[::1]:8700", True), ("127.8.9.1", True),
        ("ops.example.com", True), ("ops.example.com:443", True), ("10.0.0.5:8700", True), ("evil.com", False),
        ("evil.com:8700", False), ("127.0.0.1.evil.com", False), ("localhost.evil.com", False), ("", False),
        ("ops.example.com.evil.com", False), ("10.0.0.6", False),
    ],
)  # fmt: skip
def test_only_our_own_names_are_answered(host: str, known: bool) -> None:
    assert GUARD.knows_host(host) is known


@pytest.mark.parametrize(
    ("given", "right"),
    [
        ("Bearer secret-token", True), ("bearer secret-token", True), ("Bearer secret-toke", False), ("Bearer ", False),
        ("", False), ("Basic secret-token", False), ("secret-token", False), ("Bearer sécret", False),
    ],
)  # fmt: skip
def test_the_token_is_asked_for(given: str, right: bool) -> None:
    assert GUARD.has_token({"authorization": given} if given else {}) is right
    assert Guard("").has_token({})


@pytest.mark.parametrize(
    ("headers", "same"),
    [
        ({}, True), ({"origin": "http://127.0.0.1:8700"}, True), ({"origin": "http://127.0.0.1:9999"}, False),
        ({"origin": "null"}, False), ({"origin": "http://evil.com"}, False), ({"origin": ""}, False),
        ({"sec-fetch-site": "same-origin"}, True), ({"sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "same-site"}, False), ({"sec-fetch-site": "none"}, True),
        ({"origin": "http://127.0.0.1:8700", "sec-fetch-site": "cross-site"}, False),
    ],
)  # fmt: skip
def test_what_changes_something_comes_from_our_own_page(headers: dict[str, str], same: bool) -> None:
    assert GUARD.same_origin({"host": "127.0.0.1:8700", **headers}) is same


@pytest.mark.parametrize(
    ("host", "yes"), [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False), ("x", False)]
)
def test_loopback(host: str, yes: bool) -> None:
    assert is_loopback(host) is yes
