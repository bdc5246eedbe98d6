"""Launcher and template: read the LaunchSpec and take hold of the fds that it names."""

from __future__ import annotations

import os
import socket

from pyworker.protocol import wire
from pyworker.protocol.template import LaunchSpec
from pyworker.unix.fds import read_whole


def read_spec(spec_fd: int) -> LaunchSpec:
    """Return the LaunchSpec in a memfd. WireError when it is none."""
    data = read_whole(spec_fd)
    spec = wire.decode(LaunchSpec, data, limit=wire.MAX_REQUEST * 4)
    assert isinstance(spec, LaunchSpec)
    return spec


def spec_fds(spec: LaunchSpec, spec_fd: int) -> list[int]:
    """Return every fd that came with a spec, except stdin, stdout and stderr."""
    pems = (spec.cert_fd, spec.key_fd, spec.ca_fd)
    named = (spec_fd, spec.channel_fd, spec.runtime_fd, spec.board_fd, spec.stacks_fd, *pems)
    return [fd for fd in (*named, spec.ipc_fd, *spec.listener_fds) if fd >= 0]


def pass_on(fds: list[int], *, inheritable: bool) -> None:
    """Let the fds survive the next exec, or not."""
    for fd in fds:
        os.set_inheritable(fd, inheritable)


def open_channel(spec: LaunchSpec) -> socket.socket:
    """Return the channel as a non-blocking socket object, which owns the fd from here."""
    channel = socket.socket(fileno=spec.channel_fd)
    channel.setblocking(False)
    return channel
