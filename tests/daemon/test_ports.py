"""daemon/ports.py: a port for a worker that is relayed to."""

from __future__ import annotations

import errno
import resource

import pytest

from pyworker.daemon.ports import free_port


def test_that_no_descriptor_is_left_is_not_taken_for_ports_that_are_all_in_use() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError) as caught:
            free_port(())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
