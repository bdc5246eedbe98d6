"""`python -I -m pyworker.daemon --home DIR`: started by the guardian only."""

from __future__ import annotations

import sys

from pyworker.daemon.main import main
from pyworker.unix.leave import leave

if __name__ == "__main__":
    leave(main(sys.argv[1:]))
