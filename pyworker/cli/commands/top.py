"""CLI: `pyworker top`: a live full-screen view; --once or a pipe: one table; --json: a document per interval."""

from __future__ import annotations

import gc
import math
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
import tty
from typing import TYPE_CHECKING, Any

import click

from pyworker.cli import render
from pyworker.cli.client import ask, figures, patience
from pyworker.cli.commands.ps import show
from pyworker.cli.eventlog import past
from pyworker.cli.options import Duration, Settings, common, follow_no_longer, option
from pyworker.errors import Exit, PyworkerError

if TYPE_CHECKING:
    from pyworker.cli.top.feed import News
    from pyworker.cli.top.frame import Surroundings
    from pyworker.cli.top.model import Model

_PAST_EVENTS = 50


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@option("-i", "--interval", type=Duration(), default=1.0, metavar="TIME", help="Time between two readings (1s).")
@option("--once", is_flag=True, help="Print one table of all workers, and exit.")
@option("--sort", type=click.Choice(["worker", "cpu", "mem", "req/s"]), default="worker", help="Order of workers.")
@common
def cmd(settings: Settings, names: tuple[str, ...], interval: float, once: bool, sort: str) -> int:
    """Watch the apps: CPU, memory, requests, latency, workers and events. ? lists the keys.

    \b
    pyworker top
    pyworker top api --interval 5s
    pyworker top --once          one table, for scripts and mails
    pyworker top --json          one document of `ps --json` a line, for ever
    """
    interval = max(0.1, interval)
    follow_no_longer(settings)
    tty = sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    if settings.json:
        return _json(settings, names, interval, once)
    if once or not tty:
        return _once(settings, names, interval, sort)
    first = ask(settings.home, figures(names), settings.timeout)  # an error is one before the screen is taken
    return _live(settings, names, interval, sort, first)


def _once(settings: Settings, names: tuple[str, ...], interval: float, sort: str) -> int:
    from pyworker.cli.top.model import Model

    # a first reading is compared with nothing; the second says what goes on now
    ask(settings.home, figures(names), settings.timeout)
    time.sleep(min(interval, 10.0))
    document = ask(settings.home, figures(names), settings.timeout)
    model = Model(sort=sort)
    apps = [{**app, "pool": model.pool(app)} for app in document.get("apps") or ()]
    show(apps, True, render.look(sys.stdout, settings.color))
    return 0


def _json(settings: Settings, names: tuple[str, ...], interval: float, once: bool) -> int:
    gc.enable()
    how = render.look(sys.stdout, settings.color)
    lost_at: float | None = -math.inf  # one that was never there is not waited for
    while True:
        began = time.monotonic()
        try:
            document = ask(settings.home, figures(names), settings.timeout)
            render.out_json(document, how)
            lost_at = None
            if once:
                return 0
        except PyworkerError as error:
            lost_at = lost_at or began
            if time.monotonic() - lost_at >= patience(error):
                raise
        render.pause(max(0.05, began + interval - time.monotonic()))


def _live(settings: Settings, names: tuple[str, ...], interval: float, sort: str, first: dict[str, Any]) -> int:
    from pyworker.cli.top.feed import Feed
    from pyworker.cli.top.frame import frame
    from pyworker.cli.top.model import Model
    from pyworker.cli.top.screen import Screen

    gc.enable()
    model = Model(interval=interval, sort=sort)
    model.feed(first, time.monotonic())
    model.learn(past(settings.home, _PAST_EVENTS, 0, names, frozenset()))
    gone: PyworkerError | None = None
    with Screen(settings.color) as screen:
        feed = Feed(settings.home, names, interval, screen.wake)
        feed.start(max((event.seq for event in model.events), default=0))
        try:
            while gone is None:
                screen.draw(frame(model, _surroundings(), screen.look(), max(3, render.rows_of(sys.stdout))))
                keys = screen.wait(1.0)
                now = time.monotonic()
                for key in keys:
                    wish = model.key(key, now)
                    if wish is None:
                        continue
                    if wish.what == "quit":
                        return 0
                    if wish.what in {"logs", "describe"}:
                        with screen.away():
                            _child(settings, wish.what, wish.name)
                    else:
                        model.say(f"{wish.what} of {wish.name} …", now)
                        feed.carry_out(wish)
                gone = _take_in(model, feed.take(), time.monotonic())
        except KeyboardInterrupt:
            return int(Exit.INTERRUPTED)
        finally:
            feed.end()
    raise gone


def _take_in(model: Model, news: list[News], now: float) -> PyworkerError | None:
    """Put what has come in into the model; return why the view is to end."""
    for item in news:
        if item.document is not None:
            model.feed(item.document, item.at)
        elif item.event is not None:
            model.learn([item.event])
        elif item.away is not None:
            if now - model.away(now) >= patience(item.away):
                return item.away
        else:
            model.say(item.message, now, item.style)
    return None


def _surroundings() -> Surroundings:
    from pyworker.cli.top.frame import Surroundings

    return Surroundings(
        socket.gethostname(), os.getloadavg()[0], os.cpu_count() or 1, time.strftime("%H:%M:%S"), time.monotonic()
    )


def _is_left(child: subprocess.Popen[bytes]) -> bool:
    """Wait for the end of a log that is followed; True: by q, which the words that said so have left the screen for."""
    keys, end = sys.stdin.fileno(), os.pidfd_open(child.pid)
    before = termios.tcgetattr(keys)
    mode = termios.tcgetattr(keys)
    mode[3] &= ~termios.ICANON  # with its echo: Enter makes a gap between what was and what comes
    termios.tcsetattr(keys, termios.TCSANOW, mode)
    try:
        while end not in select.select([keys, end], [], [])[0]:
            typed = os.read(keys, 1024)
            if b"q" in typed:
                # else it would be on the screen that the shell has next
                render.write(sys.stdout, "\r\x1b[K", render.look(sys.stdout))
                return True
            if not typed:
                return True
        return False
    finally:
        termios.tcsetattr(keys, termios.TCSANOW, before)
        os.close(end)


def _child(settings: Settings, what: str, name: str) -> None:
    """Run another command of ours on the terminal. Ctrl-C ends it, and only it."""
    if what == "logs":  # of an app that prints nothing, this is all there is
        render.note(f"logs of {name}   q or Ctrl-C: back")
    # -P: nothing of the folder that top was typed in is imported
    argv = [sys.executable, "-P", "-m", "pyworker", what, *(["-f", "-n", "100"] if what == "logs" else []), name]
    with subprocess.Popen(argv, env={**os.environ, "PYWORKER_HOME": settings.home}) as child:
        try:
            if what == "logs" and _is_left(child):
                return
            child.wait()
        finally:
            child.terminate()
    if what == "describe" or child.returncode not in {0, 130, -signal.SIGINT}:
        keys = sys.stdin.fileno()
        before = termios.tcgetattr(keys)
        tty.setcbreak(keys, termios.TCSANOW)
        try:
            render.note("\nany key: back")
            os.read(keys, 1024)
        finally:
            termios.tcsetattr(keys, termios.TCSANOW, before)
