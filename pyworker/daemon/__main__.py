"""`python -I -m pyworker.daemon --home DIR`: started by the guardian only."""

from __future__ import annotations

import sys

from pyworker.daemon.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
