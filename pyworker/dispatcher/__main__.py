"""`python -I -m pyworker.dispatcher`: started by the daemon, never by hand."""

from __future__ import annotations

import sys

from pyworker.dispatcher.main import main

if __name__ == "__main__":
    sys.exit(main())
