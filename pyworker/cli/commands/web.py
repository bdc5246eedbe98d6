"""CLI: `pyworker web`: the dashboard in the browser. Becomes a process of its own; nothing of it is imported here."""

from __future__ import annotations

import importlib.util
import signal
import sys

import click

from pyworker.cli.launch import become, check_installation
from pyworker.cli.options import Settings, common, option
from pyworker.errors import PyworkerError
from pyworker.unix.venv import install_command


@click.command()
@option(
    "--listen",
    default="127.0.0.1:8700",
    metavar="HOST:PORT",
    help="Address to listen on (127.0.0.1:8700); port 0: any.",
)
@option("--allow-host", multiple=True, metavar="NAME", help="A name under which a proxy calls it.")
@option("--new-token", is_flag=True, help="Make a new token; the old one is refused from then on.")
@option(
    "--no-token",
    is_flag=True,
    help="Ask for none: every user of this machine may then change what runs. Only on a loopback address.",
)
@common
def cmd(settings: Settings, listen: str, allow_host: tuple[str, ...], new_token: bool, no_token: bool) -> int:
    """Serve a dashboard: apps and workers live, charts of the last hour, logs, events, reload and scale.

    Its address, with the token, is printed on stdout. /metrics has the figures for Prometheus (same token, as
    `Authorization: Bearer TOKEN`).

    \b
    pyworker web --listen 127.0.0.1:8700
    ssh -L 8700:127.0.0.1:8700 server      then open the printed address here
    """
    host, _, port = listen.rpartition(":")
    host = host.strip("[]") or "127.0.0.1"
    if not (port.isdecimal() and len(port) < 6 and int(port) < 65536 and host.isprintable()):
        raise click.BadParameter(f"{listen!r} is no address: write 127.0.0.1:8700")
    if no_token and host not in {"127.0.0.1", "::1", "localhost"}:
        message = f"--no-token on {host} would let everybody who can reach this machine stop its apps."
        raise PyworkerError(message, hint="leave --no-token out, or listen on 127.0.0.1", code="usage")
    if importlib.util.find_spec("starlette") is None:
        message = "the dashboard needs starlette, which is not installed"
        raise PyworkerError(message, hint=install_command(sys.executable, "starlette>=0.40"), code="missing")
    check_installation()
    argv = ["pyworker.web", "--home", settings.home, "--host", host, "--port", port]
    argv += [word for name in allow_host for word in ("--allow-host", name)]
    argv += ["--json"] * settings.json + ["--new-token"] * new_token + ["--no-token"] * no_token
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until it has imported what it needs
    become(argv)
