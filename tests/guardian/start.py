"""Test program: the real guardian, with stand-ins for daemon and logger. start.py SOCKET GUARDIAN-ARGUMENTS..."""

from __future__ import annotations

import os
import sys

from pyworker.guardian.__main__ import main
from pyworker.policy import faults

STAND_IN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stand_in.py")

if __name__ == "__main__":
    faults.CALM = float(os.environ.get("CALM", faults.CALM))
    address, *arguments = sys.argv[1:]
    python = [sys.executable, "-I", "-S", STAND_IN]
    commands = {role: [*python, role, address] for role in ("daemon", "logger")}
    sys.exit(main(arguments, commands, [sys.executable, os.path.abspath(__file__), address]))
