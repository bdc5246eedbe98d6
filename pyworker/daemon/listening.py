"""Daemon: the listeners of apps. Opened once, kept in the store, shared by generations, closed with the last user."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from pyworker.config.address import Address, collide
from pyworker.config.origin import origins
from pyworker.config.problem import ConfigError
from pyworker.config.schema import AppConfig
from pyworker.daemon.app import App, Generation, Listener
from pyworker.daemon.desired import FileSource
from pyworker.daemon.listener import (
    UNIX_MODE,
    ListenFailed,
    bound_to,
    has_no_address,
    has_no_file,
    inode,
    is_listening,
    listen_again,
    looked_up,
    nobody_waits,
    open_listener,
    shut_down,
)
from pyworker.daemon.nodeshared import is_node, shares
from pyworker.daemon.owner import Owner
from pyworker.protocol.inherited import fd_name
from pyworker.unix.fds import refuse_fds
from pyworker.unix.user import CannotDrop, acting_as

if TYPE_CHECKING:
    from pyworker.daemon.brain import Brain


NOT_BOUND = "no worker has bound"


def asks(config: AppConfig) -> bool:
    """Whether its workers ask for listeners, with whatever address they like."""
    return config.script is not None or is_node(config) or shares(config)


def where_named(app: App, generation: Generation) -> str:
    """Return the place of `bind` as one more line of a hint; "" where no file has it."""
    if not isinstance(app.source, FileSource):
        return ""
    path, profile, overrides = app.source.path, app.source.profile, app.source.overrides
    try:
        named = origins(generation.config, path, {}, profile=profile, overrides=overrides)["bind"]
    except ConfigError:  # it has been changed since it was read
        return ""
    return f"\n`bind` is in {named.words(path)}" if named.line else ""


def not_bound(address: Address) -> str:
    """Return what is said of an address of `bind` that no worker has asked for."""
    return f"{NOT_BOUND} {address}, which `bind` names: who connects there waits. Is it where the program listens?"


def why_unreachable(app: App, listener: Listener) -> str:
    """Return why nobody can connect to what is listened on, and what helps; "" while all is well."""
    step = f"pyworker reload {app.name} makes it again"
    if has_no_file(listener.address):
        return f"{listener.address}: its file was removed, and nobody can connect: {step}"
    if _has_no_interface(listener):
        return f"{listener.address}: its network interface was made anew, and nobody can connect: {step}"
    if has_no_address(listener.sock):
        return f"{listener.address}: this machine does not have that address now: nobody can connect until it is back"
    return ""


def _has_no_interface(listener: Listener) -> bool:
    """True for a link-local address whose network interface was made anew: the kernel knows it by another number by now."""
    interface = listener.address.host.partition("%")[2]
    if not interface:
        return False
    try:
        bound_to_it: int = listener.sock.getsockname()[3]
        return bound_to_it != socket.if_nametoindex(interface)
    except OSError:  # there is none now: it may come back, and a new listener cannot be had
        return False


def _is_lost(listener: Listener) -> bool:
    """True where nobody can connect any more, and a new one can be had."""
    return has_no_file(listener.address) or _has_no_interface(listener)


class Listening:
    """Opens, finds and closes; whom a listener belongs to is App.listeners."""

    def __init__(self, brain: Brain) -> None:
        self._brain = brain

    def find(self, app: App, address: Address) -> Listener | None:
        """The newest: it is the one that has the file of a Unix socket whose file was removed."""
        if not app.listening or has_no_file(address):
            return None
        newest_first = [x for x in reversed(app.listeners.values()) if not _has_no_interface(x)]
        named = (x for x in newest_first if x.address == address)
        # a script that listens on localhost has looked it up, and `bind` may have the name
        return next(named, None) or next((x for x in newest_first if bound_to(x.sock) == address), None)

    def find_named(self, app: App, address: Address) -> Listener | None:
        """The same for an address of `bind`, whose host name is looked up: it may have been written in another way before."""
        found = self.find(app, address)
        if found is None and any(x.address.port == address.port for x in app.listeners.values()):
            found = self.find(app, looked_up(address))
        return found

    def open(self, app: App, address: Address, generation: Generation) -> Listener:
        for other in self._brain.apps.values():
            for theirs in other.listeners.values():
                if other is not app and collide(theirs.address, address):
                    message = f"cannot listen on {address}: already in use by your app {other.name}"
                    hint = f"pyworker stop {other.name}   or choose another address"
                    raise ListenFailed(message, hint=hint, code="port_in_use")
        for left in self.unused(app):
            if collide(left.address, address):  # kept open for the new code, which listens here instead
                self.close(app, left)
        for mine in app.listeners.values():
            if collide(mine.address, address) and not _is_lost(mine):
                text = f"cannot listen on {address}: already in use by {app.name} itself, on {mine.address}"
                hint = f"pyworker stop {app.name}, then start it again: nobody is answered in between"
                if mine.index in generation.listeners:  # else it is of other code, and goes with that
                    hint = f'name where the program listens: bind = "{address}"; or have it listen on {mine.address}'
                raise ListenFailed(text, hint=hint, code="port_in_use")
        named = (i for g in app.generations.values() for i in g.listeners)  # a dispatcher may know one that was shut
        index = max([*app.listeners, *named], default=-1) + 1
        config, resolved = generation.config, generation.resolved
        uid, gid = resolved.uid, resolved.gid
        # in whose folder root would make or replace a socket, a config file of the user's must not say
        as_user = uid if resolved.users_own and address.family == "unix" else None
        try:
            with acting_as(as_user, gid, resolved.groups):
                sock = open_listener(
                    address,
                    backlog=config.backlog,
                    mode=UNIX_MODE & ~int(config.umask or "0", 8),
                    uid=-1 if uid is None else uid,
                    gid=-1 if gid is None else gid,
                    own=self._own,
                )
        except CannotDrop as error:
            hint = "only root that has CAP_SETUID and CAP_SETGID can start an app as another user"
            raise ListenFailed(f"cannot listen on {address}: {error}", hint=hint, code="no_permission") from None
        except ListenFailed as error:
            if as_user is not None and error.code == "no_permission":
                error.hint = (
                    f"choose a folder that {config.user} may write to, or give the config file and its folder to root"
                )
            raise
        if address.family == "unix" and config.target is not None:
            refuse_fds(sock)  # HTTP knows none, and a client's could hold up whoever closes them
        try:
            copy = os.dup(sock.fileno())
        except OSError:
            shut_down(sock, address)
            sock.close()
            raise
        listener = Listener(index, address, sock)
        app.listeners[index] = listener
        self._brain.store.put(fd_name("listen", app.name, index), copy)
        return listener

    def forget_shut(self, app: App) -> None:
        """What was shut on the way to an end that another command takes back: it cannot be opened again."""
        if not app.listening:
            for listener in list(app.listeners.values()):
                self.close(app, listener)
            app.listening = True

    def is_asked_for(self, app: App, listener: Listener, generation: int) -> None:
        """Note it before the worker is answered: it stays open as long as this generation is there."""
        if generation not in listener.asked:
            listener.asked.intersection_update(app.generations)
            listener.asked.add(generation)
            app.write_memo()
            self._brain.note_is_over(app, not_bound(listener.address))

    def close_unused(self, app: App, now: float) -> float | None:
        """Close what is unused; when to look again, if that is to be waited for."""
        unused = self.unused(app)
        if not unused:
            return None
        if any(asks(g.config) for g in app.generations.values()):
            settled_at = app.settled_at(now)
            if settled_at is None or now < settled_at:
                return settled_at
        for listener in unused:
            self.close(app, listener)
            if listener.asked:
                text = f"{listener.address} is closed: no worker asks for it any more"
                self._brain.remark(app, text)
        return None

    def drops(self, app: App, generation: int) -> list[Listener]:
        """What workers of this generation accept on and those of today's do not. (Of a dispatcher's see `refuse`.)

        Not of a command: its own accept would fail, and when it has ended is unknown.
        """
        if app.current is None or app.dispatcher is not None or app.generations[generation].config.target is None:
            return []
        named = set(app.generations[generation].listeners) - set(app.current.listeners)
        return [x for x in app.listeners.values() if x.index in named and x.asked.isdisjoint(app.generations)]

    def refuse_dropped(self, app: App, *, at_once: bool) -> None:
        """The old ones accept no more: who connects where only they did would wait until the last has gone, in vain.

        With `at_once=False` they have been told to, and it is done where nobody waits for them, who would be reset.
        Not closed: a roll-back listens there again (`keep_listening`), which a Unix socket could not.
        """
        for number in app.generations:
            for listener in self.drops(app, number) if number < app.generation else ():
                sock = listener.sock
                if listener.address.family != "unix" and is_listening(sock) and (at_once or nobody_waits(sock)):
                    shut_down(sock, listener.address)

    def refuse(self, app: App, index: int) -> None:
        """A dispatcher accepts there no more: the same, but where today's workers accept for themselves."""
        listener, current = app.listeners.get(index), app.current
        if listener is None or current is None or index in current.listeners or listener.address.family == "unix":
            return
        if listener.asked.isdisjoint(app.generations):
            shut_down(listener.sock, listener.address)

    def keep_listening(self, app: App) -> None:
        """Take back `refuse_dropped` and `refuse` where today's workers accept: after a roll-back, or a reload that names it again."""
        if app.current is None or not app.listening:
            return
        for index in app.current.listeners:
            if index in app.listeners:
                listen_again(app.listeners[index].sock, app.current.config.backlog)

    def unused(self, app: App) -> list[Listener]:
        """What neither `bind` names nor a worker of today's has asked for."""
        named = {i for g in app.generations.values() for i in g.listeners}
        return [x for x in app.listeners.values() if x.index not in named and x.asked.isdisjoint(app.generations)]

    def _own(self, found: Owner) -> str:
        """Return the app that has this listener, or that one of whose workers has made it; "" when it is another's."""
        group = 0
        with contextlib.suppress(OSError):  # it has gone
            group = os.getpgid(found.pid) if found.pid else 0
        for app in self._brain.apps.values():
            if any(inode(x.sock) in found.inodes for x in app.listeners.values()):
                return app.name
            if group and any(worker.pid == group for worker in app.workers.values()):
                return app.name
        return ""

    def close(self, app: App, listener: Listener) -> None:
        app.listeners.pop(listener.index, None)
        self._brain.store.remove(fd_name("listen", app.name, listener.index))
        shut_down(listener.sock, listener.address)
        listener.sock.close()
