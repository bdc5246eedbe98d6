"""Logger: `python -I -m pyworker.logger --home DIR`, with its channel as fd 3 and the lifeline as fd 4.

`--stdout FORMAT` (short, json, plain): log there, in this format.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from typing import Any

from pyworker import __version__, exchanged
from pyworker.logger.birth import become_logger, wait_for_predecessor
from pyworker.logger.main import Logger
from pyworker.protocol.names import ENV_TICK
from pyworker.protocol.store import CHANNEL_FD, LIFELINE_FD, TICK
from pyworker.unix import process, stderr
from pyworker.unix.leave import leave
from pyworker.unix.title import set_title

PREDECESSOR = 2.0  # seconds


def main(argv: list[str]) -> int:
    if argv == ["--check"]:
        print(json.dumps({"version": __version__}))  # noqa: T201  the answer to the daemon that asks
        return 0
    if exchanged.is_exchanged():
        stderr.write(f"logger: {exchanged.MESSAGE}\n")
        return 1
    options = process.given(argv, "--home", "--stdout")
    stdout: Any = options.get("--stdout", "")
    home = os.path.abspath(options["--home"]) if options["--home"] else ""
    process.set_name("pyworker logger")
    set_title("pyworker logger")
    channel = socket.socket(fileno=CHANNEL_FD)
    channel.setblocking(False)
    for fd in (CHANNEL_FD, LIFELINE_FD):
        os.set_inheritable(fd, False)
    become_logger()
    wait_for_predecessor(LIFELINE_FD, PREDECESSOR)
    return Logger(home, channel, LIFELINE_FD, stdout, float(os.environ.get(ENV_TICK) or TICK)).run()


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
