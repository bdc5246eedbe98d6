"""Worker: the end of one: all that Python does at its exit, but for taking itself apart.

That would write to every object of the app, and so have all the memory copied that a worker shares with its template, to
free it: as much work, and as much memory for a moment, as many workers leave at once. The operating system does it at no
cost. What ends with the app is asked to: threads, what is registered with `atexit`, files with something in their buffers.
Who relies on `__del__` of what lives until the end is told by Python, too, that it may never come.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import io
import os
import threading
import traceback
import weakref
from typing import IO, Any, NoReturn

from pyworker.worker.say import flush, write

_BUFFERED = (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)

_files: list[weakref.ref[IO[Any]]] = []


def remember_files() -> None:
    """Note which files there are. For a process that is about to hide its objects from the collector (`gc.freeze`)."""
    _files[:] = map(weakref.ref, _all_files())


def end(code: int) -> NoReturn:
    """Leave with this exit code."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for those that are no daemons
    except BaseException as error:  # noqa: BLE001  of what the app has it call; Python tells of it and goes on, too
        write("".join(traceback.format_exception(error)))
    atexit._run_exitfuncs()
    for file in [*(each() for each in _files), *_all_files()]:
        if file is not None:
            # nobody takes it, or it is closed or detached; what the app has put beneath it may raise anything
            with contextlib.suppress(Exception):
                file.flush()
    flush()
    # libraries have an end of their own (a profiler writes its figures): no os._exit
    ctypes.PyDLL(None).exit(code)
    raise AssertionError("exit returned")


def code_of(leaving: SystemExit) -> int:
    """Return the exit code that it asks for; a text is printed and means 1, as in Python's own end."""
    if leaving.code is None or isinstance(leaving.code, int):
        return (leaving.code or 0) & 0xFF
    write(f"{leaving.code}\n")
    return 1


def end_forked(where: str, error: BaseException | None = None) -> NoReturn:
    """End this process, which the app has forked and which comes back to us: by `error`, or (None) by returning.

    The loop and what is open are its parent's.
    """
    code = 1
    if isinstance(error, SystemExit):
        code = code_of(error)
    elif error is not None:
        write(f"{where}:\n{''.join(traceback.format_exception(error))}")
    else:
        write(f"{where}: a process that the app has forked came back from it: it is ended here\n")
        code = 0
    flush()
    os._exit(code)


def _all_files() -> list[IO[Any]]:
    # by the type that it has, not by the class that it says it is: that may be the app's code (Django's lazy objects)
    # nor is any asked whether it is closed: one that is detached raises (`codecs.getwriter("utf-8")(sys.stdout.detach())`)
    return [each for each in gc.get_objects() if issubclass(type(each), _BUFFERED)]
