"""Code made immortal before the forks: in a process of its own, since it is for good."""

import subprocess
import sys
import textwrap

_PROGRAM = """
import sys, types, weakref
from pyworker.template.immortal import immortalise

MESSAGE = "a constant of this module, " * 2
class Thing:
    def method(self, text=MESSAGE): return text
class Lazy:
    __class__ = type(lambda: None)  # says it is a function, as lazy objects of a framework do
def function(): return Thing().method()
data = {"thing": Thing(), "list": [Thing()], "text": "".join(["not ", "code"])}
lazy = Lazy()
gone = weakref.ref(data["thing"])
file = open("/dev/null")
number = file.fileno()
before = [sys.getrefcount(each) for each in (data, data["list"], data["text"], lazy)]

count = immortalise()

forever = sys.getrefcount(None)
code = (function, function.__code__, Thing, Thing.__mro__, Thing.method, sys, weakref, MESSAGE, len)
print(count > 1000, [sys.getrefcount(each) == forever for each in code])
print(before == [sys.getrefcount(each) for each in (data, data["list"], data["text"], lazy)])
del data["thing"], file
print(gone() is None, function() == MESSAGE)
import os
try:
    os.fstat(number)
    print("open")
except OSError:
    print("closed")
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_code_is_immortal_and_data_is_freed_as_ever() -> None:
    version = sys.version_info[:3]
    if not (3, 12) <= version < (3, 16) or (3, 14) <= version < (3, 14, 5) or sys.abiflags:
        expected = [f"False {[False] * 9}", "True", "True True", "closed"]
    else:
        expected = [f"True {[True] * 9}", "True", "True True", "closed"]
    assert run(_PROGRAM).splitlines() == expected


def test_a_class_and_a_module_that_are_immortal_can_still_be_changed_and_replaced() -> None:
    out = run("""
        import sys, types
        from pyworker.template.immortal import immortalise
        class Base: pass
        class Thing(Base): value = 1
        module = types.ModuleType("module")
        sys.modules["module"] = module
        immortalise()
        class Later(Thing): pass
        Thing.value = 2
        Thing.extra = lambda self: self.value + 1
        Thing.__bases__ = (type("Other", (Base,), {"kind": "other"}),)
        thing = Later()
        del sys.modules["module"]
        print(thing.value, thing.extra(), thing.kind, Base.__subclasses__()[0].__name__)
    """)
    assert out.split() == ["2", "3", "other", "Other"]


def test_a_process_whose_code_is_immortal_ends_as_any() -> None:
    out = run("""
        import atexit, sys, threading, warnings
        from pyworker.template.immortal import immortalise
        immortalise()
        atexit.register(print, "at the end")
        threading.Thread(target=print, args=("thread",)).start()
    """)
    assert out.split("\n")[:2] == ["thread", "at the end"]


def test_what_asyncio_keeps_for_its_next_futures_is_kept() -> None:
    out = run("""
        import asyncio
        from pyworker.template.immortal import immortalise
        async def wait(): await asyncio.sleep(0.001)
        async def some(count): await asyncio.gather(*(wait() for _ in range(count)))
        asyncio.run(some(2))
        immortalise()
        asyncio.run(some(9))  # more than are kept
        print("done")
    """)
    assert out == "done\n"  # under CPython before 3.12.6 and 3.13.0, asking its module for what it refers to freed it again


def test_no_module_is_asked_what_it_refers_to() -> None:
    out = run("""
        import gc, types
        from pyworker.template.immortal import immortalise
        asked, ask = set(), gc.get_referents
        def get_referents(*objects):
            asked.update(map(type, objects))
            return ask(*objects)
        gc.get_referents = get_referents
        immortalise()
        print(asked & {types.ModuleType})
    """)
    assert out == "set()\n"


def test_what_is_immortal_is_not_counted_however_often_it_is_used() -> None:
    out = run("""
        import sys, types
        from ctypes import c_uint32
        from pyworker.template.immortal import immortalise
        class Thing:
            def method(self): return super().__init__
            @property
            def value(self): return TEXT
        class Wrong(Exception): pass
        TEXT = "a constant of this module, " * 2
        def function(kind=Thing): return kind, TEXT
        def use():
            import types as again
            alias, kind = function, Thing
            alias(kind=kind)[0]().method()
            isinstance(Thing().value, kind), [Thing, again, alias], {Thing: types}, (lambda: kind)()
            try: raise Wrong
            except Wrong as error: type(error)
        done = immortalise()
        use(), Thing, Wrong, function, types.FunctionType, sys.path, TEXT
        watched = [Thing, Wrong, function, function.__code__, Thing.method, types, sys, TEXT]
        counts = [c_uint32.from_address(id(each)) for each in watched]
        before = [count.value for count in counts]
        for each in range(2001):  # names of a module are looked up otherwise than those of a function
            use(), Thing, Wrong, function, types.FunctionType, sys.path, TEXT
        print(not done or before == [count.value for count in counts])
    """)
    assert out == "True\n"
