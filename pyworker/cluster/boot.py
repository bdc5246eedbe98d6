"""Run an unmodified program as a cluster worker: `python boot.py script.py args…` or `python boot.py -m module args…`.

Executed as a file, by the interpreter of the program, which need not have pyworker installed. The program sees the
sys.path, sys.argv and __main__ that `python script.py` would give it.
"""

import builtins
import importlib
import io
import os
import sys
import types

_kept: list[object] = []  # this module, which still runs beneath the program


def main() -> None:
    """Become a worker and run the program."""
    own = os.path.dirname(os.path.abspath(__file__))
    root = os.path.dirname(os.path.dirname(own))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != own]
    added = "pyworker" not in sys.modules and root not in sys.path
    if added:
        sys.path.insert(0, root)
    child = importlib.import_module("pyworker.cluster.child")
    if added:
        sys.path.remove(root)
    if child.worker is None:  # it would bind ports of its own
        sys.exit(f"error: boot.py runs workers of a cluster, and this is none: {child.process._process.why}")
    arguments = sys.argv[1:]
    _kept.append(sys.modules["__main__"])
    if arguments[0] == "-m":
        import runpy

        sys.argv = arguments[1:]
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    path = arguments[0]
    sys.argv = arguments
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    with io.open_code(os.path.abspath(path)) as source:
        code = compile(source.read(), path, "exec")
    module = types.ModuleType("__main__")
    module.__dict__.update(__file__=path, __builtins__=builtins, __spec__=None)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


if __name__ == "__main__":
    main()
