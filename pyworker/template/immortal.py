"""Template: code is made immortal before the forks, so that workers go on sharing it (CPython 3.12 to 3.15).

Whoever uses an object writes to its reference count, and the first write to a page copies it for that worker. Nobody writes
to the count of an immortal object (PEP 683), which is what makes None and True such. We do the same for what code consists of:
functions, classes, modules, descriptors, code, and the names and tuples behind them; the free-threaded CPython 3.13 chose the
same kinds. They are in use for as long as the app is. Data is left alone: what an app drops, it expects to be freed, and closed.

Only under the versions that the tests have passed under with it. Python 3.11 has no such objects: there it is seen to that
workers let go of fewer.
"""

from __future__ import annotations

import gc
import sys
import types
from ctypes import c_uint8, c_uint32
from itertools import chain
from typing import Any

# found among the objects that the collector knows
_CODE = (
    type, types.FunctionType, types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType,
    types.WrapperDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType,
    types.ClassMethodDescriptorType, types.CellType, property, staticmethod, classmethod,
)  # fmt: skip
# found behind those; of these exactly: what derives from them is data of the app
_PARTS = frozenset({types.CodeType, tuple, frozenset, str, bytes, int, float, complex})
_FOREVER = sys.getrefcount(None)
# Since 3.14 a flag says it, too: without it, each use of a name is taken back from the count, and then added again.
_FLAG_AT, _FLAG = 6, 1
_IS_FLAGGED = sys.version_info >= (3, 14)


def immortalise() -> int:
    """Make the code that is loaded immortal; return how many objects are now (0: this Python cannot).

    Call it before `gc.freeze`, which hides them.
    """
    if not _can():
        return 0
    done: set[int] = set()
    # by the type that it has, not by the class that it says it is: that may be the app's code (Django's lazy objects)
    found: list[Any] = [each for each in gc.get_objects() if issubclass(type(each), _CODE)]
    while found:
        new = {id(each): each for each in found if id(each) not in done}
        for address in new:
            _keep(address)
        done.update(new)
        # A module is not asked: C code of its own may answer, and name what is freed already and kept for later, which is
        # freed once more then. asyncio's did before CPython 3.12.6 (gh-122695), and aborted in each worker.
        asked = (each for each in new.values() if not issubclass(type(each), types.ModuleType))
        behind = chain.from_iterable(map(gc.get_referents, asked))
        found = [each for each in behind if type(each) in _PARTS]
    return len(done)


def forget_lookups() -> None:
    """Under CPython 3.11, have no attribute be known by its name as looked up lately.

    4,096 names are, each held by a count. Those of the import would be let go one by one as a worker looks up others: a
    page copied for each. Later versions do not count them, or not with `immortalise`.
    """
    if sys.version_info < (3, 12) and sys.implementation.name == "cpython":
        sys._clear_type_cache()


def _keep(address: int) -> None:
    c_uint32.from_address(address).value = _FOREVER
    if _IS_FLAGGED:
        c_uint8.from_address(address + _FLAG_AT).value |= _FLAG


def _can() -> bool:
    """Tell by trial whether a count is where we think, and whether it is left alone once it is None's."""
    version = sys.version_info[:3]
    if not (3, 12) <= version < (3, 16) or (3, 14) <= version < (3, 14, 5):  # these had another collector
        return False
    if sys.implementation.name != "cpython" or sys.abiflags or sys.byteorder != "little":
        return False  # abiflags: a free-threaded or debug build, with other counts
    probe = object()
    count = c_uint32.from_address(id(probe))
    before = count.value
    more = [probe, probe]
    if count.value != before + len(more):
        return False
    _keep(id(probe))
    more.append(probe)
    more.clear()
    exec("probe", {"probe": probe})
    return count.value == _FOREVER
