"""The bytes of a head, and around a part of a body, that the server makes by itself."""

from __future__ import annotations

import platform
import resource
from email.utils import formatdate

import pytest

from pyworker.worker.engines import heads


@pytest.mark.parametrize("moment", [0, 951782400, 1709164799.999, 1735689599, 1798761600.5, 4102444800])
def test_date_is_what_the_standard_library_would_write(moment: float) -> None:
    assert heads.date_line(moment) == f"date: {formatdate(moment, usegmt=True)}\r\n".encode()


def test_a_chunk_has_its_size_before_it_whatever_holds_its_bytes() -> None:
    for data in (b"hello world", bytearray(b"hello world"), memoryview(b"hello world")):
        assert heads.chunk(data, b"head\r\n") == b"head\r\nb\r\nhello world\r\n"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="musl gives each large block back to the kernel")
def test_the_memory_of_a_large_chunk_serves_the_next_one() -> None:
    part = b"x" * 2**20
    heads.chunk(part)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(64):
        heads.chunk(part)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert pages < 64 * 2**20 / resource.getpagesize() / 4  # all of it, when the kernel gives it anew each time
