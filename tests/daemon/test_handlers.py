"""The table of requests."""

from typing import get_args

from pyworker.daemon.handlers import HANDLERS
from pyworker.protocol import control


def test_every_request_of_the_protocol_has_its_function() -> None:
    assert set(HANDLERS) == set(get_args(control.Request))
