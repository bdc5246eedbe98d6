"""`python -m pyworker` and the `pyworker` command: the CLI."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run the command line and leave with its exit code."""
    gc.disable()  # importing makes nothing but things that stay; collecting among them costs some 3 ms
    if not os.path.isabs(os.environ.get("HOME", "/")):
        del os.environ["HOME"]  # empty, or another folder wherever one stands: the home in /etc/passwd counts
    if sys.argv[1:2] == ["__complete"]:  # a shell's completion: somebody holds down the tab key
        from pyworker.cli.complete import main as complete

        sys.exit(complete(sys.argv[2:]))
    try:
        import signal

        from pyworker.cli.later import import_later

        # what is ignored stays so over an exec, and nobody could be told how a child of ours has ended
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        import_later("inspect")  # click cleans indented help with it, and ours is not
        # click makes a class of it, that of a kind of option that ours are not
        uuid = import_later("uuid", UUID=object)
        from pyworker.cli.main import main as cli_main
        from pyworker.unix.leave import leave

        del uuid.UUID
        gc.enable()
        leave(cli_main(sys.argv[1:]))
    except KeyboardInterrupt:  # before there was a command to interrupt
        from pyworker.errors import Exit

        sys.exit(Exit.INTERRUPTED)
    except ImportError as error:
        sys.stderr.write(f"error: pyworker's files are not all there: {error}\n")
        step = "run it again when an upgrade of pyworker is done; if it stays so, install pyworker anew"
        sys.stderr.write(f"  = help: {step}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
