"""Draws docs/img/reload.svg from real output: `python docs/screenshots.py`.

Starts a daemon in a temporary home, runs each command on a terminal of its own, keeps the last picture of what it
animates, and has rich draw it. Only pids and times differ from one run to the next. No font is fetched by the picture.
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
MOVES = re.compile(r"\x1b\[(\d*)([ABCDGHJKfl])|\x1b\[\?(\d+)[hl]|\r|\n")


def run(command: str, folder: str, env: dict[str, str]) -> str:
    """Run a command line on a terminal and return all it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    argv = [PYWORKER, *command.split()[1:]]
    with subprocess.Popen(
        argv, cwd=folder, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ):
        os.close(theirs)
        data = b""
        with contextlib.suppress(OSError):  # EIO: the command has ended
            while chunk := os.read(ours, 65536):
                data += chunk
        os.close(ours)
    return data.decode("utf-8", "replace")


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
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    with tempfile.TemporaryDirectory(prefix="pyworker-picture-") as folder:
        pathlib.Path(folder, "shop.py").write_text(APP)
        env = {k: v for k, v in os.environ.items() if k not in ("CI", "NO_COLOR")}
        env |= {"PYWORKER_HOME": os.path.join(folder, "home"), "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        try:
            run("pyworker daemon start", folder, env)
            for command in (
                "pyworker start shop:app -w 4 -b 127.0.0.1:8461",
                "pyworker reload shop",
                "pyworker ps",
            ):
                console.print(Text("$ ", style="bold green") + Text(command, style="bold"))
                for line in last_picture(run(command, folder, env)):
                    console.print(Text.from_ansi(line), no_wrap=True, crop=True)
                console.print()
            pathlib.Path(folder, "shop.py").write_text("import redis\n" + APP)
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
    svg = console.export_svg(title="pyworker")
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)  # they point to a server of fonts
    svg = svg.replace("Fira Code,", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono,")
    (HERE / "img").mkdir(exist_ok=True)
    (HERE / "img" / "reload.svg").write_text(svg, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
