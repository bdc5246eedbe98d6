"""Boot: the first lines that run in the app's interpreter, as __main__ of the runtime zip.

Must be readable by Pythons far too old for the rest, so that they are refused with a sentence. Imports the program of
this role from the zip, takes the zip off the path again (what it holds stays importable) and goes there for good.
Arguments: role, number of the spec's fd, number of the channel's fd, and what the program itself was given.
"""

import json
import os
import sys


def refuse(role, channel_fd):  # type: ignore[no-untyped-def]
    """Tell the daemon that this Python is too old, and leave."""
    version = str(sys.version_info[0]) + "." + str(sys.version_info[1])
    message = {
        "type": "load_failed" if role == "template" else "failed",
        "kind": "config",
        "message": "the app's interpreter " + sys.executable + " is Python " + version + "; 3.11 or newer is needed",
        "traceback": "",
        "hint": "Point `python` to a newer one, or run the app as a command (`command = [...]`) with its own server.",
    }
    os.write(channel_fd, json.dumps(message).encode("ascii"))
    sys.exit(78)


def boot():  # type: ignore[no-untyped-def]
    """Import the program from the zip and run it."""
    role, spec_fd, channel_fd = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if sys.version_info < (3, 11):  # noqa: UP036  this very file is for them
        refuse(role, channel_fd)
    if role == "template":
        from pyworker.template import main
    else:
        from pyworker.template import script as main  # type: ignore[no-redef]
    archive = sys.path.pop(0)
    main.main(spec_fd, sys.argv[4:], archive, sys.modules["__main__"])


if __name__ == "__main__":
    boot()  # type: ignore[no-untyped-call]
