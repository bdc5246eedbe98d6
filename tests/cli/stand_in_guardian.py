"""A stand-in for the guardian: lock, control socket, "ok", and it leaves when its home's `leave` file appears.

Started as `python stand_in_guardian.py MODE -I -m pyworker.guardian --home DIR --notify-fd N` (the words that the
CLI gives to its interpreter). It leaves a line per successful boot in `boots` and its environment in `seen`.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import sys


def main(mode: str, words: list[str]) -> int:
    if words[:2] == ["-I", "-c"]:  # it is asked whether it finds pyworker
        return 0
    assert words[:3] == ["-I", "-m", "pyworker.guardian"], words
    home, notify = words[4], int(words[6])
    if mode == "crash":
        print("ModuleNotFoundError: No module named 'select'", file=sys.stderr)
        return 1
    if mode == "refuse":
        os.write(
            notify, json.dumps({"error": f"{home} is open to others", "hint": "chmod 700", "exit": 77}).encode() + b"\n"
        )
        return 77
    os.makedirs(home, mode=0o700, exist_ok=True)
    lock = os.open(f"{home}/lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.write(notify, b'{"error":"already running","exit":75}\n')
        return 75
    with open(f"{home}/boots", "a") as boots:
        boots.write(f"{os.getpid()}\n")
    with open(f"{home}/seen", "w") as seen:
        fds = {n: os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n in {"0", "1", "2"}}
        json.dump({"env": dict(os.environ), "fds": fds, "sid": os.getsid(0), "pid": os.getpid()}, seen)
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(f"{home}/control.sock")
        control.listen(64)
        os.write(notify, b"ok\n")
        os.close(notify)
        while not os.path.exists(f"{home}/leave"):
            if select.select([control], [], [], 0.02)[0]:
                control.accept()[0].close()
        os.unlink(f"{home}/control.sock")
    return 0


sys.exit(main(sys.argv[1], sys.argv[2:]))
