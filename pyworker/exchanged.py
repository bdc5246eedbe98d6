"""Whether our own files were exchanged since this process began: it may then be of two versions. Runs anywhere.

To be imported early: what was exchanged before counts as read whole.
"""

from __future__ import annotations

import os
import sys
import time

BEGAN = time.time()
_HAS_FILES = os.path.exists(__file__)  # not where a program was made of us

MESSAGE = "the files of pyworker were exchanged while it started"


def is_exchanged() -> bool:
    """Whether a module of ours that was imported is missing by now, or newer than this process.

    One of the future counts as old: a clock that was set back, or a server's, must not keep us from starting.
    """
    if not _HAS_FILES:
        return False
    now = time.time()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) if name.partition(".")[0] == "pyworker" else None
        try:
            if file and BEGAN < os.stat(file).st_ctime <= now:
                return True
        except FileNotFoundError:
            return True
        except OSError:
            continue
    return False
