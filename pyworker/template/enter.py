"""Enter: the short way into the app's interpreter, for a template that has no rights to give up.

The launcher's work, without its imports, which take longer than the rest of a light template's start. The daemon gives
this text to `python -I -S -c`, with the fd of a file: folder, umask, soft limit of open files (or nothing), the spec's
fd, how many words the command line of the app's interpreter has, these, and its environment, which is not to reach
pyworker's; each ended by NUL. What cannot be done this way the launcher finds out again, and says it.
"""

import os
import sys


def enter(fd: int) -> None:
    with open(fd, "rb") as file:
        file.seek(0)  # who wrote it has the same place in it
        folder, umask, nofile, spec_fd, count, *rest = file.read().split(b"\0")[:-1]
    command, env = rest[: int(count)], rest[int(count) :]
    try:
        if nofile.isdigit():
            import resource

            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            soft = int(nofile) if hard == resource.RLIM_INFINITY else min(int(nofile), hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.umask(int(umask))
        os.chdir(folder)
        os.execve(command[0], command, dict(entry.split(b"=", 1) for entry in env))
    except (OSError, ValueError, OverflowError, ImportError):
        os.execv(sys.executable, [sys.executable, "-I", "-m", "pyworker.template", spec_fd.decode()])


if __name__ == "__main__":
    enter(int(sys.argv[1]))
