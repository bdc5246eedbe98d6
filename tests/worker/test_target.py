"""Loading the app that `target` names: what kind it is, and errors that say the next step."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyworker.config.schema import AppConfig
from pyworker.worker.target import MAX_TRACEBACK, Target, TargetError, load

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules into a folder that is the working directory and first on the path; forget them afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def files(**modules: str) -> None:
        for name, text in modules.items():
            path = tmp_path / (name.replace("__", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    yield files
    for name in set(sys.modules) - before:
        del sys.modules[name]


def find(target: str, **options: Any) -> Target:
    return load(AppConfig(name="test", target=target, **options))


def fails(target: str, **options: Any) -> TargetError:
    with pytest.raises(TargetError) as caught:
        find(target, **options)
    return caught.value


KINDS = """
import functools
async def asgi(scope, receive, send): ...
def asgi_plain(scope, receive, send): ...
class Asgi:
    async def __call__(self, scope, receive, send): ...
class AsgiPlain:
    def __call__(self, scope, receive, send): ...
class AnyCall:
    async def __call__(self, *args, **kwargs): ...
class Wsgi:
    def __call__(self, environ, start_response): ...
def wsgi(environ, start_response): ...
def wsgi_any(*args): ...
def keyword_only(*, settings): ...
def wsgi_extra(environ, start_response, extra=None): ...
def asgi2(scope): ...
class Asgi2:
    def __init__(self, scope): ...
    async def __call__(self, receive, send): ...
async def extra(x, scope, receive, send): ...
partial = functools.partial(extra, 1)
asgi_object, asgi_plain_object, any_call, wsgi_object = Asgi(), AsgiPlain(), AnyCall(), Wsgi()
class Wrapper:
    func = staticmethod(asgi)
    def __call__(self, environ, start_response): ...
class HasAll:
    def __getattr__(self, name): return self
    def __call__(self, environ, start_response): ...
wrapper, has_all = Wrapper(), HasAll()
number = 3
def make(): return wsgi_object
def make_broken(): raise ValueError("no settings")
async def make_async(): ...
class Box:
    app = asgi_object
class Application:
    __module__ = "aiohttp.web_app"
    def __call__(self): return self
served_by_aiohttp = Application()
class Interface:
    __module__ = "gradio.interface"
    def __call__(self, *inputs, api_name=None): ...
served_by_gradio = Interface()
class Starlette(Asgi):
    __module__ = "starlette.applications"
class App(Starlette):
    __module__ = "gradio.routes"
app_of_gradio = App()
class Column:
    __module__ = "panel.layout.base"
    def __call__(self, **params): ...
served_by_panel = Column()
class Robyn:
    __module__ = "robyn"
served_by_robyn = Robyn()
"""


@pytest.mark.parametrize(
    ("name", "interface"),
    [
        ("asgi", "asgi"), ("asgi_plain", "asgi"), ("asgi_object", "asgi"), ("asgi_plain_object", "asgi"), ("any_call", "asgi"),
        ("partial", "asgi"), ("Box.app", "asgi"), ("wsgi", "wsgi"), ("wsgi_object", "wsgi"), ("wsgi_any", "wsgi"),
        ("wsgi_extra", "wsgi"), ("wrapper", "wsgi"), ("has_all", "wsgi"), ("app_of_gradio", "asgi"),
    ],
)  # fmt: skip
def test_the_kind_of_an_app_is_seen(write: Write, name: str, interface: str) -> None:
    write(kinds=KINDS)
    assert find(f"kinds:{name}").interface == interface
    if name.endswith("_any"):  # of one that takes anything it is what the config says
        assert find(f"kinds:{name}", interface="asgi").interface == "asgi"


def test_frameworks_are_recognized() -> None:
    assert find("tests.support.apps.frameworks:flask_app", factory=True).interface == "wsgi"
    assert find("tests.support.apps.frameworks:django_app", factory=True).interface == "wsgi"
    assert find("tests.support.apps.fast:fastapi_app", factory=True).interface == "asgi"


def test_what_is_in_a_module_may_be_anything_where_the_name_is_not(write: Write) -> None:
    odd = """
import sys
from settings import get_settings
class Lazy:
    @property
    def __class__(self): raise RuntimeError("no settings")
    def __call__(self): ...
settings = Lazy()
def other(environ, start_response): ...
class Slots:
    __slots__ = ()
"""
    write(settings="import functools\n@functools.cache\ndef get_settings(): ...")
    write(odd=odd, itself=odd + "sys.modules[__name__] = Slots()")
    error = fails("odd:app")
    assert (error.message, error.hint) == ('module "odd" has no attribute "app"', 'it has "odd:settings", "odd:other"')
    assert fails("itself:app").message == 'module "itself" has no attribute "app"'


@pytest.mark.parametrize(
    ("target", "options", "kind", "message", "hint"),
    [
        ("kinds", {}, "target", "not module:attribute", "shop.main:app"),
        ("kinds:wsgy", {}, "target", 'has no attribute "wsgy"', 'did you mean "kinds:wsgi"'),
        ("kinds:zzz", {}, "target", 'has no attribute "zzz"', '"kinds:asgi"'),
        ("kinds:number", {}, "target", "an int, which cannot be called", "name the app object"),
        ("kinds:make", {}, "target", "takes no arguments", "factory = true, or --factory"),
        ("kinds:Asgi", {}, "target", "is a class", "factory = true"),
        ("kinds:asgi2", {}, "target", "takes one argument", "guarantee_single_callable"),
        ("kinds:asgi2", {}, "target", "takes one argument", "a function without any that calls it"),  # Pyramid's main
        ("kinds:asgi2", {"factory": True}, "import", "missing 1 required", "a function without any that calls it"),
        ("kinds:keyword_only", {"factory": True}, "import", "missing 1 required", "a function without any that calls it"),
        ("kinds:Asgi2", {}, "target", "ASGI 2", "guarantee_single_callable"),
        ("kinds:wsgi", {"interface": "asgi"}, "target", "is a WSGI app", 'interface = "wsgi"'),
        ("kinds:asgi", {"interface": "wsgi"}, "target", "is an ASGI app", 'interface = "asgi"'),
        ("kinds:any_call", {"interface": "wsgi"}, "target", "is an ASGI app", 'interface = "asgi"'),
        ("kinds:make_broken", {"factory": True}, "import", "ValueError: no settings", ""),
        ("kinds:make_async", {"factory": True}, "target", "coroutine function", "plain function"),
        ("kinds:wsgi", {"factory": True}, "import", "TypeError", "remove factory = true"),
        ("kinds:__name__", {"factory": True}, "target", "is not a function", "remove factory = true"),
        ("kinds:served_by_aiohttp", {}, "target", "an application of aiohttp", "web.run_app(app)"),
        ("kinds:served_by_gradio", {}, "target", "an application of gradio", "calls launch(), instead, with workers = 1"),
        ("kinds:served_by_panel", {}, "target", "an application of panel", "calls pn.serve(), instead, with workers = 1"),
        ("kinds:served_by_robyn", {}, "target", "an application of robyn", 'with balance = "proxy"'),
        ("kindz:app", {}, "import", "there is no module kindz", 'did you mean "kinds"'),
        ("nowhere:app", {}, "import", "there is no module nowhere", "set cwd"),
        ("kinds.py:app", {}, "import", "there is no module kinds.py", 'target = "kinds:…"'),
    ],
)
def test_what_is_wrong_is_said_with_the_next_step(
    write: Write, target: str, options: dict[str, Any], kind: str, message: str, hint: str
) -> None:
    write(kinds=KINDS)
    error = fails(target, **options)
    assert error.kind == kind
    assert message in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    ("name", "target", "text", "message"),
    [
        ("sched", "shop:app", "import sched\nsched.scheduler", "module 'sched' has no attribute 'scheduler'"),
        ("sched", "shop:app", "from sched import scheduler", "cannot import name 'scheduler'"),
        ("logging", "shop:app", "from logging import number", "cannot import name 'number'"),
        ("logging", "shop:app", "import logging.number", "No module named 'logging.number'"),
        ("logging", "logging:number", "", 'module "logging" has no attribute "number"'),
    ],
)
def test_a_file_that_is_named_as_a_module_of_python_is_named(
    write: Write, monkeypatch: pytest.MonkeyPatch, name: str, target: str, text: str, message: str
) -> None:
    monkeypatch.delitem(sys.modules, "sched", raising=False)
    write(shop=text, **{name: "number = 1"})
    error = fails(target)
    assert message in error.message
    assert error.hint == f"{name}.py has the name of a module of Python itself: give it another"


@pytest.mark.parametrize(
    ("name", "target", "text"),
    [
        ("pyworker", "pyworker:number", ""),
        ("pyworker", "shop:app", "from pyworker import number"),
        ("pyworker", "shop:app", "import pyworker.number"),
        ("pytest", "shop:app", "import pytest\npytest.number"),
    ],
)
def test_a_file_that_is_named_as_a_module_that_was_loaded_before_is_named(write: Write, name: str, target: str, text: str) -> None:
    write(shop=text, **{name: "number = 1"})
    assert fails(target).hint == f"{name}.py has the name of a module that pyworker has loaded before it: give it another"


def test_a_package_that_is_named_as_a_module_of_python_is_named(write: Write) -> None:
    write(logging__shop="app = None", shop="")
    error = fails("logging.shop:app")
    assert error.message == 'cannot import "logging.shop": there is no module logging.shop'
    assert error.hint == "logging has the name of a module of Python itself: give it another"


def test_a_module_of_a_virtual_environment_in_the_app_s_folder_is_not_the_app_s(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(pytest="number = 1")
    monkeypatch.setattr(pytest, "__file__", f"{tmp_path}/.venv/lib/python3/site-packages/pytest/__init__.py")
    assert fails("pytest:number").hint == "pytest.py has the name of a module that pyworker has loaded before it: give it another"


def test_a_module_in_a_folder_below_is_found(write: Write) -> None:
    write(backend__main="app = 1")
    assert 'cwd = "backend"' in fails("main:app").hint


def test_a_folder_in_which_the_user_may_not_look_is_named(write: Write, tmp_path: Path) -> None:
    write(shop="app = 1")
    tmp_path.chmod(0o311)
    before = os.geteuid()
    if not before:
        os.seteuid(65534)  # root may
    try:
        error = fails("shop:app")
    finally:
        os.seteuid(before)
        tmp_path.chmod(0o755)
    assert error.message == 'cannot import "shop": there is no module shop'
    assert error.hint == f"Python cannot look into {tmp_path}: Permission denied; let this user read that folder"


def test_a_module_that_is_part_of_a_package_is_told_where_to_start_it(write: Write, tmp_path: Path) -> None:
    write(rel="from . import other", uses_it="import rel")
    step = f'it is part of the package {tmp_path.name}: set cwd = "{tmp_path.parent}" and target = "{tmp_path.name}.rel:…"'
    assert fails("rel:app").hint == step
    assert fails("uses_it:app").hint == ""


def test_a_missing_library_is_named_and_how_to_get_it(write: Write, tmp_path: Path) -> None:
    write(shop="import a_library_that_is_missing\n")
    error = fails("shop:app")
    assert error.message == "ModuleNotFoundError: No module named 'a_library_that_is_missing'"
    assert "pip install a_library_that_is_missing" in error.hint
    write(shop2="import cv2\n", shop3="import pytest.nothing\n", shop4="import json.nothing\n")
    assert "pip install opencv-python-headless" in fails("shop2:app").hint
    assert "pytest is installed, and this version has no such module" in fails("shop3:app").hint
    assert fails("shop4:app").hint == f"Python {sys.version_info[0]}.{sys.version_info[1]} has no such module"
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").touch()
    assert 'python = ".venv"' in fails("shop:app").hint


def test_what_a_module_imports_when_it_is_asked_for_is_named_as_well(write: Write) -> None:
    write(lazily="def __getattr__(name):\n    import a_library_that_is_missing\n", leaving="def __getattr__(name):\n    exit(3)\n")
    error = fails("lazily:app")
    assert error.message == "ModuleNotFoundError: No module named 'a_library_that_is_missing'"
    assert "pip install a_library_that_is_missing" in error.hint
    assert "worker/target.py" not in error.traceback
    assert fails("leaving:app").message == "SystemExit: 3"


def test_the_traceback_has_the_users_frames_only(write: Write) -> None:
    write(outer="import inner\n", inner="def f():\n    raise RuntimeError('deep')\nf()\n")
    error = fails("outer:app")
    assert error.message == "RuntimeError: deep"
    assert error.traceback.count("File ") == 3
    assert "importlib" not in error.traceback
    assert "worker/target.py" not in error.traceback
    assert error.traceback.endswith("RuntimeError: deep\n")


def test_a_syntax_error_shows_its_line(write: Write) -> None:
    write(broken="x = 1\nif x\n    pass\n")
    error = fails("broken:app")
    assert error.message.startswith("SyntaxError: ")
    assert error.message.endswith("(broken.py, line 2)")
    assert "line 2" in error.traceback


def test_an_endless_traceback_is_cut(write: Write) -> None:
    write(big="raise ValueError('x' * 100_000)\n")
    assert len(fails("big:app").traceback) <= MAX_TRACEBACK


def test_an_import_that_exits_has_no_hint_but_what_it_has_printed(write: Write) -> None:
    """Its traceback shows the sys.exit(); why is in the log, which is named where there is no other hint."""
    write(leaving="import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--port', required=True)\nparser.parse_args([])\n")
    error = fails("leaving:app")
    assert (error.message, error.hint) == ("SystemExit: 2", "")


def test_causes_that_lead_back_to_where_they_began_are_told_once(write: Write) -> None:
    write(
        shop="""
one, other = ValueError("one"), KeyError("other")
other.__cause__ = one
raise one from other
"""
    )
    traceback = fails("shop:app").traceback
    assert traceback.count("KeyError: 'other'") == 1
    assert traceback.endswith("ValueError: one\n")


def test_what_needs_a_loop_at_import_is_told_where_there_is_one(write: Write) -> None:
    write(
        shop="import asyncio\nasyncio.get_running_loop()\n",
        made="def app():\n    raise RuntimeError(\"There is no current event loop in thread 'MainThread'.\")\n",
    )
    assert "in the lifespan" in fails("shop:app").hint
    assert "in the lifespan" in fails("made:app", factory=True).hint
