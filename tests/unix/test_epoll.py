"""Epolls of this process, whoever made them."""

from __future__ import annotations

import os
import select

import pytest

from pyworker.unix.epoll import unregister_everywhere, waiting_for


def test_a_descriptor_is_taken_out_of_every_epoll_though_the_program_has_taken_epoll_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader, writer = os.pipe()
    with select.epoll() as epoll:
        epoll.register(reader, select.EPOLLIN)
        monkeypatch.delattr(select, "epoll")  # as gevent.monkey.patch_all() does
        unregister_everywhere({reader})
        assert waiting_for(epoll.fileno()) == set()
    os.close(reader)
    os.close(writer)
