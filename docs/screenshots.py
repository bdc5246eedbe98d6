"""Draws docs/img/reload.svg and top.svg from real output: `python docs/screenshots.py`.

Starts a daemon in a temporary home, runs each command on a terminal of its own, keeps the last picture of what it
animates, and has rich draw it. Only pids, times and figures differ from one run to the next. No font is fetched by the
pictures.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.request
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

HERE = pathlib.Path(__file__).parent
PYWORKER = os.path.join(os.path.dirname(sys.executable), "pyworker")
COLUMNS, ROWS = 100, 40
APP = """\
import os

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": os.environ["PYWORKER_WORKER"].encode()})
"""
PORT = 8461
TOP_SECONDS = 40  # of curves
FRAME = re.compile(rb"\x1b\[\?2026h\x1b\[H(.*?)\x1b\[\?2026l", re.DOTALL)
MOVES = re.compile(r"\x1b\[(\d*)([ABCDGHJKfl])|\x1b\[\?(\d+)[hl]|\r|\n")


@contextlib.contextmanager
def on_terminal(command: str, folder: str, env: dict[str, str], rows: int = ROWS) -> Iterator[Iterator[bytes]]:
    """Run a command line on a terminal; give all that it has written there, again after each piece."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, COLUMNS, 0, 0))

    def written() -> Iterator[bytes]:
        data = b""
        with contextlib.suppress(OSError):  # EIO: the command has ended
            while chunk := os.read(ours, 65536):
                data += chunk
                yield data

    argv = [PYWORKER, *command.split()[1:]]
    with subprocess.Popen(
        argv, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        try:
            yield written()
        finally:
            process.terminate()
            os.close(ours)


def run(command: str, folder: str, env: dict[str, str]) -> str:
    """Run a command line on a terminal and return all it wrote there."""
    with on_terminal(command, folder, env) as written:
        *_, data = written
    return data.decode("utf-8", "replace")


def top(folder: str, env: dict[str, str]) -> list[str]:
    """Return what `pyworker top` shows after a while of requests."""
    ended = threading.Event()

    def ask() -> None:
        while not ended.wait(0.004):
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/") as answer:
                answer.read()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with on_terminal("pyworker top", folder, env, rows=23) as written:
            began = time.monotonic()
            data = next(data for data in written if time.monotonic() > began + TOP_SECONDS)
    finally:
        ended.set()
        asking.join()
    return FRAME.findall(data)[-1].replace(b"\x1b[K", b"").decode().replace("\r", "").split("\n")


def last_picture(output: str) -> list[str]:
    """Return the lines that are left on the screen: rows that were drawn again replace the old ones."""
    lines, row = [""], 0
    at = 0
    for match in MOVES.finditer(output):
        lines[row] += output[at : match.start()]
        at = match.end()
        count = int(match[1] or 1) if match[1] is not None else 1
        if match[0] == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif match[2] == "A":
            row = max(0, row - count)
        elif match[2] == "J":
            del lines[row + 1 :]
            lines[row] = ""
        elif match[0] == "\r" and output[at : at + 1] != "\n":
            lines[row] = ""
    lines[row] += output[at:]
    return [line for line in lines if line.strip()]


def main() -> int:
    console, screen = picture(), picture()
    with tempfile.TemporaryDirectory(prefix="pyworker-picture-") as folder:
        pathlib.Path(folder, "shop.py").write_text(APP)
        env = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")}
        env |= {"PYWORKER_HOME": os.path.join(folder, "home"), "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        try:
            run("pyworker daemon start", folder, env)
            for command in (
                f"pyworker start shop:app -w 4 -b 127.0.0.1:{PORT}",
                "pyworker reload shop",
                "pyworker ps",
            ):
                console.print(Text("$ ", style="bold green") + Text(command, style="bold"))
                for line in last_picture(run(command, folder, env)):
                    console.print(Text.from_ansi(line), no_wrap=True, crop=True)
                console.print()
            run("pyworker start --name tasks -w 2 -- sleep 1d", folder, env)
            for line in top(folder, env):
                screen.print(Text.from_ansi(line), no_wrap=True, crop=True)
            pathlib.Path(folder, "shop.py").write_text("import celery\n" + APP)
            console.print(
                Text("$ ", style="bold green")
                + Text("pyworker reload shop      # with a mistake in it", style="bold")
            )
            for line in last_picture(run("pyworker reload shop", folder, env)):
                console.print(
                    Text.from_ansi(line.replace(folder, "/srv/shop").replace(sys.executable, "python")),
                    no_wrap=True,
                )
        finally:
            subprocess.run(
                [PYWORKER, "daemon", "stop", "-y"], env=env, check=False, capture_output=True, timeout=60
            )
    save(console, "reload.svg", "pyworker")
    save(screen, "top.svg", "pyworker top")
    return 0


def picture() -> Console:
    return Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )


def save(console: Console, name: str, title: str) -> None:
    svg = console.export_svg(title=title)
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)  # they point to a server of fonts
    svg = svg.replace("Fira Code,", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono,")
    (HERE / "img" / name).write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
