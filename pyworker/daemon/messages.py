"""Daemon: the workers' message channels (`ipc`, Node's convention). The other end is `pyworker.process`, or Node itself.

What a worker sends becomes an event; what `pyworker send` says goes to the worker. Nothing of it waits in the daemon: a
message that a worker's channel has no room for is refused, a worker that says too much is read more slowly (and then
waits itself), and a descriptor that comes along is closed. The codec is protocol/node.py.
"""

from __future__ import annotations

import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any

from pyworker.config.check import runs_node
from pyworker.config.schema import AppConfig
from pyworker.daemon import nodeshared
from pyworker.daemon.handles import DispatcherHandle, WorkerHandle, copy_socket
from pyworker.daemon.loop import HANGUP, READ, WRITE
from pyworker.daemon.nodeshared import is_node
from pyworker.policy import talk
from pyworker.policy.lifecycle import State
from pyworker.protocol import node
from pyworker.protocol.inherited import worker_fd
from pyworker.record import field, mutable
from pyworker.unix import fds as unix_fds

if TYPE_CHECKING:
    from pyworker.daemon.app import App, Generation
    from pyworker.daemon.brain import Brain

_READS = 4
AGAIN = 0.5  # seconds until a channel is listened to that could not be
REST = 0.2  # seconds without reading one that has said too much
READ_SIZE = 4096  # of many small messages all that were read become events before others get a turn
_READY = b'"ready"'  # as a line
_CLOSED = "it has closed its message channel"
_FULL = "it does not read its messages: its channel is full"
_A_READ = READ_SIZE / node.MAX_TEXT  # of a message, is spent on it: there may be none in what is said


class NotSent(Exception):
    """A message that did not go; the text says why."""


@mutable
class Channel:
    """One worker's."""

    sock: socket.socket
    generation: Generation
    talk: talk.Allowance
    link: node.Link = field(default_factory=lambda: node.Link(max_line=node.MAX_TEXT))
    paid: float = 0.0  # for what has been read since the last message
    resting: bool = False
    ended: bool = False  # the worker has closed its end, and all that it said was read
    full: bool = False  # a message waits for room
    babbled: bool = False  # what was no message has been noted once: it may be another each time


class Messages:
    """All channels. The worker's runtime decides nothing here: its bytes are untrusted."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain
        self._channels: dict[tuple[str, int], Channel] = {}

    def watch(self, app: App, handle: WorkerHandle) -> None:
        """Read what this worker sends, if it has a channel. A Node cluster's channels are read by the dispatcher."""
        generation = app.generations.get(handle.id.generation)
        if generation is None or is_node(generation.config):
            return
        fd = self._brain.store.get(worker_fd("ipc", handle.id))
        if fd is None:
            return
        try:
            sock = copy_socket(fd)
        except OSError:  # no descriptor is left: what it sends waits, and all else that it says is heard
            self._brain.loop.call_later(AGAIN, lambda: self.watch(app, handle))
            return
        channel = Channel(sock, generation, talk.Allowance(self._brain.loop.clock()))
        self._channels[app.name, handle.id.serial] = channel
        self._listen(app, handle, channel)

    def forget(self, app: App, handle: WorkerHandle) -> None:
        """The worker has ended: what it said last is read, and the channel closed."""
        channel = self._channels.pop((app.name, handle.id.serial), None)
        if channel is not None:
            channel.talk.left = max(channel.talk.left, 10.0)
            if not channel.ended:
                self._read(app, handle, channel)
            self._brain.loop.remove(channel.sock.fileno())
            unsent, came = channel.link.abandon()
            unix_fds.let_go(came)
            for listener in unsent:
                listener.close()
            unix_fds.hang_up(channel.sock)

    def send(self, app: App, handle: WorkerHandle, value: Any) -> DispatcherHandle | None:
        """Put a message into the worker's channel, or return the dispatcher that is to; NotSent says why that cannot be."""
        generation = app.generations.get(handle.id.generation)
        if generation is not None and is_node(generation.config):
            try:
                node.check_message(value)
                line = node.encode_line(value, node.MAX_TEXT).decode()
            except node.MessageError as error:
                raise NotSent(str(error)) from None
            dispatcher = self._brain.dispatchers.tell(app, handle.id.serial, line)
            if dispatcher is None:
                raise NotSent("the dispatcher, which has its channel, does not take it now: send it again in a moment")
            return dispatcher
        channel = self._channels.get((app.name, handle.id.serial))
        if channel is None:
            raise NotSent("it has no message channel (ipc = true gives it one)")
        if channel.ended:
            raise NotSent(_CLOSED)
        if channel.link.backlog:
            raise NotSent(_FULL)
        try:
            node.check_message(value)
            channel.link.send(value)
        except node.MessageError as error:
            raise NotSent(str(error)) from None
        if not self._flush(channel):
            raise NotSent(_CLOSED)
        if channel.link.withdraw():  # what waits here is lost with this daemon
            channel.full = False
            self._set_mask(channel)
            raise NotSent(_FULL)
        return None

    def disconnect(self, app: App, handle: WorkerHandle) -> bool:
        """Ask a Node worker whose primary we are to finish and leave; False when it cannot be asked."""
        channel = self._channels.get((app.name, handle.id.serial))
        if channel is None or not nodeshared.shares(channel.generation.config) or channel.ended:
            return False
        channel.link.send(nodeshared.DISCONNECT)
        self._flush(channel)
        return True

    # ---- inside --------------------------------------------------------------------------------------------
    def _listen(self, app: App, handle: WorkerHandle, channel: Channel) -> None:
        self._brain.loop.add(channel.sock.fileno(), READ, lambda events: self._on_events(app, handle, channel, events))

    def _on_events(self, app: App, handle: WorkerHandle, channel: Channel, events: int) -> None:
        if events & WRITE:
            self._flush(channel)
        if channel.resting and events & HANGUP:  # said at each turn, whatever is asked for
            self._brain.loop.remove(channel.sock.fileno())
        elif events & (READ | HANGUP):
            self._read(app, handle, channel)

    def _read(self, app: App, handle: WorkerHandle, channel: Channel) -> None:
        for _ in range(_READS):
            if not self._may_read(app, handle, channel):
                return
            self._look_for_ready(app, handle, channel)
            try:
                size = unix_fds.whole_lines(channel.sock, READ_SIZE, node.MAX_TEXT + 1)
                packet = unix_fds.recv_packet(channel.sock, size, unix_fds.MOST_FDS)
            except OSError:
                packet = unix_fds.Packet(b"", [], 0, False)
            if packet is None:
                return
            if not packet.data:
                unix_fds.let_go(packet.fds)
                self._brain.loop.remove(channel.sock.fileno())
                channel.ended = True
                self._closed(app, handle, channel)
                return
            channel.talk.spend(_A_READ)
            channel.paid += _A_READ
            for event in channel.link.feed(packet.data, packet.fds):
                self._take(app, handle, channel, event)
            self._flush(channel)

    def _look_for_ready(self, app: App, handle: WorkerHandle, channel: Channel) -> None:
        """It is said once, so it is written down before it is taken out of the channel: a daemon may be killed in between."""
        if channel.generation.config.ready != "notify" or handle.state is not State.STARTING:
            return
        with contextlib.suppress(OSError):  # nothing is there, or the channel has ended
            lines = channel.sock.recv(READ_SIZE, socket.MSG_PEEK | socket.MSG_DONTWAIT).split(b"\n")
            if _READY in lines[int(channel.link.is_within_line) : -1]:
                self._brain.readiness.says_ready(app, handle)

    def _closed(self, app: App, handle: WorkerHandle, channel: Channel) -> None:
        """A Node worker that was asked to disconnect has done so: what keeps it alive now is none of its connections."""
        alive = self._channels.get((app.name, handle.id.serial)) is channel
        if alive and handle.state is State.DRAINING and nodeshared.shares(channel.generation.config):
            self._brain.workers.stop(app, handle, "its connections have ended", self._brain.loop.clock())
            self._brain.poke(app)

    def _may_read(self, app: App, handle: WorkerHandle, channel: Channel) -> bool:
        """Whether its messages may be read now; else they are after a while, and wait with the worker until then."""
        if channel.talk.is_left(self._brain.loop.clock()):
            return True
        channel.resting = True
        self._set_mask(channel)

        def again() -> None:
            channel.resting = False
            if self._channels.get((app.name, handle.id.serial)) is channel:
                if not self._brain.loop.watches(channel.sock.fileno()):
                    self._listen(app, handle, channel)
                self._set_mask(channel)

        self._brain.loop.call_later(REST, again)
        return False

    def _take(self, app: App, handle: WorkerHandle, channel: Channel, event: node.Event) -> None:
        match event:
            case node.Message(value=value, handle=given):
                channel.talk.spend(max(0.0, 1.0 - channel.paid))  # a long one costs no more than a short one
                channel.paid = 0.0
                self._close(given)
                self.heard(app, handle, *node.shown(value))
            case node.Internal(value=question, handle=given):
                self._close(given)
                self._answer(app, handle, channel, question)
            case node.Sent(token=listener) | node.NotReceived(token=listener):
                listener.close()
            case node.Stray(fds=fds):
                unix_fds.let_go(fds)
            case node.Malformed(reason=reason):
                channel.talk.spend()
                if not channel.babbled:
                    channel.babbled = True
                    self._brain.note(app, f"worker {handle.id.slot} said what is no message: {reason}")

    def heard(self, app: App, handle: WorkerHandle, text: str, size: int) -> None:
        """A message (of a longer one its beginning) as JSON."""
        cut = len(text) < size
        value = text if cut else json.loads(text)
        self._brain.emit(app, "worker_message", handle, message=value, size=size, cut=cut)
        generation = app.generations.get(handle.id.generation)
        if value == "ready" and generation is not None and generation.config.ready == "notify":
            self._brain.readiness.says_ready(app, handle)

    def _answer(self, app: App, handle: WorkerHandle, channel: Channel, question: dict[str, Any]) -> None:
        """A program of Node's cluster asks its primary, which we are: see nodeshared.py."""
        config = channel.generation.config
        if not nodeshared.shares(config) or channel.link.backlog > node.MAX_TEXT:
            return
        channel.talk.spend()
        # nothing else was asked for: it is ready when it listens
        if question.get("act") == nodeshared.LISTENING and config.health is None and config.ready != "notify":
            self._brain.readiness.says_ready(app, handle)
            return
        answer = nodeshared.answer(self._brain, app, channel.generation, question)
        if answer is None:
            return
        if answer.listener is None:
            channel.link.send(answer.message)
        else:
            channel.link.send_handle(answer.message, "net.Native", answer.listener.fileno(), answer.listener)

    def _close(self, given: node.Handle | None) -> None:
        """No descriptor is taken from a worker."""
        if given is not None:
            unix_fds.let_go([given.fd])

    def _flush(self, channel: Channel) -> bool:
        """Write what there is room for; False when nobody is there any more who would read it."""
        channel.full, is_there = False, True
        try:
            while (frame := channel.link.to_write()) is not None:
                count = unix_fds.send_whole(channel.sock, frame.data, frame.fd)
                channel.link.written(count)
                if count:
                    continue
                if frame.fd < 0:
                    channel.full = True
                else:  # perhaps too many descriptors are under way: no event tells when there is room
                    self._brain.loop.call_once(("flush", id(channel)), REST, lambda: self._flush(channel))
                break
        except OSError:  # its pidfd, or the end of what it has said, tells the rest
            is_there = False
        self._set_mask(channel)
        return is_there

    def _set_mask(self, channel: Channel) -> None:
        fd = channel.sock.fileno()
        if self._brain.loop.watches(fd):
            self._brain.loop.modify(fd, (0 if channel.resting else READ) | (WRITE if channel.full else 0))


def wants_channel(config: AppConfig) -> bool:
    """Whether workers of this config get a message channel: Python's, Node's, and those that ask for it."""
    if config.ipc != "auto":
        return config.ipc
    if config.command:
        return runs_node(config.command)
    return config.balance != "proxy"
