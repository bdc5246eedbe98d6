"""`python -m pyworker.cluster [--workers N] [--scheduling none] script.py args…` (or `-m module args…`)."""

from __future__ import annotations

import argparse

from pyworker import cluster


def main() -> None:
    """Run a program as a cluster until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m pyworker.cluster", description=main.__doc__)
    parser.add_argument("--workers", "-w", type=int, default=0, help="how many (default: the CPUs it may use)")
    spread = "turns, or as the kernel likes: for a server that forks processes of its own to accept in"
    parser.add_argument("--scheduling", choices=("round-robin", "none"), default="round-robin", help=spread)
    parser.add_argument("-m", dest="module", help="a module instead of a script, as of python -m")
    parser.add_argument("program", nargs=argparse.REMAINDER, help="a script and its arguments")
    told = parser.parse_args()
    if told.module is None and not told.program:
        parser.error("which script?")
    script, args = (None, told.program) if told.module is not None else (told.program[0], told.program[1:])
    try:
        cluster.run(script, args, module=told.module, workers=told.workers, scheduling=told.scheduling)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
