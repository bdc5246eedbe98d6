"""Template or worker: imports the app that `target` names and finds out what kind it is.

Every way to fail is a TargetError with the user's own frames and a next step. sys.path is the caller's business.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
import types
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal

from pyworker.config.schema import AppConfig
from pyworker.policy.distributions import distribution_of
from pyworker.record import record
from pyworker.unix.venv import install_command
from pyworker.worker import headline
from pyworker.worker.ending import code_of, end
from pyworker.worker.say import say

Kind = Literal["import", "target", "engine", "config", "rights", "exec", "other"]
MAX_TRACEBACK = 24 * 1024
_WANTS_ARGUMENTS = "a factory that wants arguments: name a function without any that calls it, with factory = true"
_SHARED = "; its workers share the port"
_ONE = ", with workers = 1: it keeps its sessions in memory"
_OWN_SERVERS = {
    "aiohttp": ("web.run_app(app)", _SHARED),
    "tornado": ("app.listen(port)", _SHARED),
    "gradio": ("launch()", _ONE),
    "panel": ("pn.serve()", _ONE),
    "robyn": ("app.start()", ', with balance = "proxy": each worker listens on its own $PORT'),
}


@record
class Target:
    """The app, ready to be called."""

    application: Any
    interface: Literal["asgi", "wsgi"]


class TargetError(Exception):
    """The app could not be loaded; the fields are those of protocol.template.LoadFailed."""

    def __init__(self, kind: Kind, message: str, traceback: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.traceback = traceback
        self.hint = hint


def load(app: AppConfig) -> Target:
    """Import `app.target` and return the app in it. Raises TargetError."""
    spec = app.target or ""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise TargetError("target", f'target "{spec}" is not module:attribute', hint='write it like "shop.main:app"')
    with _no_other_process_comes_back():
        module = _import(module_name)
        found = _attribute(module, module_name, attribute)
        if app.factory:
            found = _from_factory(found, spec)
    _fill_standard_streams()
    if green := _monkey_patched():
        message = f"its import has {green} replace Python's own sockets and threads, on which pyworker serves it"
        call = {"gevent": "gevent.monkey.patch_all()", "eventlet": "eventlet.monkey_patch()"}[green]
        hint = f'leave out {call} and set `threads`; or run its own server: command = "gunicorn -k {green} …"'
        raise TargetError("import", message, hint=hint)
    return Target(found, _interface(found, spec, app))


def _fill_standard_streams() -> None:
    """Put /dev/null in the place of what the import has closed: the next file or socket would have that number."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one


def _monkey_patched() -> str:
    """Return which library has put its green threads under the standard library; "" for none that is known."""
    for module, name in (("socket", "socket"), ("select", "select"), ("threading", "_start_new_thread")):
        found = getattr(sys.modules.get(module), name, None)
        library = str(getattr(found, "__module__", "")).partition(".")[0]
        if library in ("gevent", "eventlet"):
            return library
    return ""


def call_hook(spec: str) -> None:
    """Call hooks.post_fork, "module:function". Raises TargetError, also for what the function raises."""
    module_name, _, attribute = spec.partition(":")
    with _no_other_process_comes_back():
        try:
            found = _attribute(_import(module_name), module_name, attribute)
        except TargetError as error:
            error.message = f"hooks.post_fork: {error.message}"
            raise
        try:
            found()
        except BaseException as error:  # noqa: BLE001 - the user's code
            raise TargetError("other", f"hooks.post_fork: {headline.of(error)}", user_traceback(error)) from None


@contextlib.contextmanager
def _no_other_process_comes_back() -> Iterator[None]:
    """Around the user's code: a process that this forks ends where it leaves it, or it would be a second one of us."""
    pid = os.getpid()
    try:
        yield
    except TargetError as failed:
        if os.getpid() != pid:
            leaving = failed.__context__
            if isinstance(leaving, SystemExit):
                end(code_of(leaving))
            say(failed.traceback or failed.message)
            end(1)
        raise
    if os.getpid() != pid:
        say("a process that the app has forked came back from its import: it is ended here")
        end(0)


def user_traceback(error: BaseException) -> str:
    """Return the traceback without pyworker's and the import system's frames, 24 KiB at most."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:  # the whole chain: "during handling of…"
        seen.add(id(cause))
        cause.__traceback__ = _user_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    text = "".join(traceback.format_exception(error))
    if len(text) > MAX_TRACEBACK:
        half = MAX_TRACEBACK // 2 - 20
        text = text[:half] + "\n  [...]\n" + text[-half:]
    return text


def _user_frames(tb: TracebackType | None) -> TracebackType | None:
    kept = []
    while tb is not None:
        frame = tb.tb_frame
        name = str(frame.f_globals.get("__name__", ""))
        ours = name.split(".")[0] == "pyworker" and name != "pyworker.__main__"
        if not ours and not frame.f_code.co_filename.startswith("<frozen importlib") and name != "importlib":
            kept.append(tb)
        tb = tb.tb_next
    for this, following in zip(kept, [*kept[1:], None], strict=False):
        this.tb_next = following
    return kept[0] if kept else None


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 - importing runs the user's code: SystemExit and all
        raise _of_import(name, error) from None


def _of_import(name: str, error: BaseException) -> TargetError:
    if isinstance(error, ModuleNotFoundError):
        missing = error.name or ""
        if missing and (name == missing or name.startswith(missing + ".")) and not _user_frames(error.__traceback__):
            message = f'cannot import "{name}": there is no module {missing}'
            loaded = sys.modules.get(missing.partition(".")[0])  # Python's own, say, instead of the package here
            hint = "" if loaded is None or _is_own(loaded) else _same_name(missing)
            return TargetError("import", message, hint=hint or _where_is(missing))
        return TargetError("import", headline.of(error), user_traceback(error), _how_to_get(missing))
    hint = ""
    if isinstance(error, ImportError):
        hint = _package_of(name, error) or _same_name(error.name or "")
    elif isinstance(error, AttributeError) and inspect.ismodule(error.obj):
        hint = _same_name(error.obj.__name__)
    return TargetError("import", headline.of(error), user_traceback(error), hint or _needs_loop(error))


def _package_of(name: str, error: ImportError) -> str:
    """Return what to do about a target that is part of a package, and was imported as if it were not."""
    frames = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    its_own = [module for module in frames if not module.startswith("importlib")][-1:] == [name]
    if not its_own or "." in name or "no known parent package" not in str(error):
        return ""
    above, folder = os.path.split(os.getcwd())
    return f'it is part of the package {folder}: set cwd = "{above}" and target = "{folder}.{name}:…"'


def _needs_loop(error: BaseException) -> str:
    if isinstance(error, RuntimeError) and str(error).startswith(
        ("no running event loop", "There is no current event")
    ):
        return "no loop runs yet when the app is imported: make this in the lifespan, or when it is first used"
    return ""


def _where_is(name: str) -> str:
    here = os.getcwd()
    first, _, last = name.rpartition(".")
    if first and last == "py":
        return f'a module has no .py in its name: target = "{first}:…"'
    try:
        entries = sorted(os.listdir(here))
    except OSError as error:  # Python finds no module where it may not list
        return f"Python cannot look into {here}: {error.strerror}; let this user read that folder"
    found = []
    for folder in entries:
        path = os.path.join(here, folder)
        if os.path.isfile(os.path.join(path, last + ".py")) or os.path.isfile(os.path.join(path, last, "__init__.py")):
            found.append(folder)
    if found:
        return f'there is a {last} in the folder {found[0]}: set cwd = "{found[0]}", or target = "{found[0]}.{last}:…"'
    above = os.path.dirname(here)
    while above != "/" and not (os.path.isfile(f"{above}/{last}.py") or os.path.isfile(f"{above}/{last}/__init__.py")):
        above = os.path.dirname(above)
    if above != "/":
        return f'there is a {last} in {above}, above this folder: run it from there, or set cwd = "{above}"'
    near = difflib.get_close_matches(last, [entry.removesuffix(".py") for entry in entries], n=1)
    if near:
        return f'did you mean "{near[0]}"? (looked in {here})'
    return f"looked in {here}; set cwd to the folder that holds it"


def _how_to_get(missing: str) -> str:
    top = missing.split(".")[0]
    if not top or os.path.exists(top + ".py") or os.path.isdir(top):
        return _same_name(missing)
    for folder in (".venv", "venv", "env"):
        python = os.path.join(os.getcwd(), folder, "bin", "python")
        if os.path.exists(python) and os.path.realpath(os.path.dirname(python)) != os.path.realpath(
            os.path.dirname(sys.executable)
        ):
            return f'there is a virtual environment in {folder}: set python = "{folder}"'
    if top in sys.stdlib_module_names:
        return f"Python {sys.version_info[0]}.{sys.version_info[1]} has no such module"
    name = distribution_of(top)
    if top in sys.modules and top != missing:
        newer = install_command(sys.executable, name, upgrade=True)
        return f"{name} is installed, and this version has no such module: {newer}"
    return f"install it: {install_command(sys.executable, name)}"


def _same_name(module: str) -> str:
    """Return what to do about a file of the app's that is named as a module of Python, or one that is loaded before it: one
    of the two hides the other.
    """
    top = module.partition(".")[0]
    for path in (top + ".py", top):
        if not os.path.exists(path):
            continue
        if top in sys.stdlib_module_names:
            return f"{path} has the name of a module of Python itself: give it another"
        loaded = sys.modules.get(top)
        if getattr(loaded, "__file__", None) and not _is_own(loaded):
            return f"{path} has the name of a module that pyworker has loaded before it: give it another"
    return ""


def _is_own(module: Any) -> bool:
    """Whether a module lies in the app's folder, and in no virtual environment there."""
    file = str(getattr(module, "__file__", ""))
    return file.startswith(os.path.join(os.getcwd(), "")) and "/site-packages/" not in file


def _attribute(module: Any, module_name: str, path: str) -> Any:
    found = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            break
        except BaseException as error:  # noqa: BLE001 - a module may import what is in it when it is asked for
            raise _of_import(module_name, error) from None
    else:
        return found
    # not by `getattr`: what is imported lazily may fail. A module may also put any object in its own place
    values = getattr(module, "__dict__", {})
    names = [name for name in values if not name.startswith("_")]
    near = difflib.get_close_matches(path, names, n=1)
    apps = [name for name in names if _looks_like_an_app(values[name], module_name)]
    if not _is_own(module) and (same := _same_name(module_name)):
        hint = same
    elif near:
        hint = f'did you mean "{module_name}:{near[0]}"?'
    elif apps:
        hint = "it has " + ", ".join(f'"{module_name}:{name}"' for name in apps[:5])
    elif names:
        hint = "it has " + ", ".join(names[:10])
    else:
        hint = f"it is empty: {getattr(module, '__file__', None) or module_name}"
    raise TargetError("target", f'module "{module_name}" has no attribute "{path}"', hint=hint)


def _looks_like_an_app(value: Any, module_name: str) -> bool:
    # by the type that it has, not by the class that it says it is: that may be the app's code (Django's lazy objects)
    kind = type(value)
    if issubclass(kind, (types.ModuleType, type)) or not callable(value):
        return False
    # what may be a method: functions, also Cython's and what `functools.cache` makes of one. Python's own in C may not
    if hasattr(kind, "__get__") or kind is types.BuiltinFunctionType:
        return getattr(value, "__module__", "") == module_name
    return True


def _from_factory(found: Any, spec: str) -> Any:
    if not callable(found):
        raise TargetError("target", f'"{spec}" is not a function', hint="remove factory = true: it is the app itself")
    try:
        made = found()
    except BaseException as error:  # noqa: BLE001 - the user's code
        hint = _needs_loop(error)
        if isinstance(error, TypeError) and _arguments(found) >= 2:
            hint = "it looks like the app itself: remove factory = true"
        elif isinstance(error, TypeError) and not _takes_nothing(found):
            hint = _WANTS_ARGUMENTS
        raise TargetError("import", headline.of(error), user_traceback(error), hint) from None
    if inspect.iscoroutine(made):
        made.close()
        message = f'"{spec}" is a coroutine function'
        raise TargetError("target", message, hint="a factory must be a plain function that returns the app")
    return made


def _takes_nothing(function: Any) -> bool:
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError):
        return False
    return True


def _arguments(function: Any) -> int:
    """Return how many positional arguments a callable needs, -1 when that cannot be known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return -1
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return -1
    return sum(1 for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty)


def _interface(found: Any, spec: str, app: AppConfig) -> Literal["asgi", "wsgi"]:
    library = type(found).__module__.partition(".")[0]
    # what Gradio's App.create_app returns is Starlette's
    if library in _OWN_SERVERS and not any(base.__module__.startswith("starlette.") for base in type(found).__mro__):
        call, how = _OWN_SERVERS[library]
        message = f'"{spec}" is an application of {library}, which serves it itself: it is neither ASGI nor WSGI'
        raise TargetError("target", message, hint=f'script = "FILE.py", the file that calls {call}, instead{how}')
    if not callable(found):
        message = f'"{spec}" is {_article(found)}, which cannot be called'
        raise TargetError("target", message, hint="name the app object, like main:app")
    looks = _detect(found, spec, app)
    wanted = app.interface
    if wanted == "auto":
        return looks
    if wanted == "asgi" and looks == "wsgi" and _arguments(found) == 2:
        raise TargetError("target", f'"{spec}" is a WSGI app', hint='set interface = "wsgi", or leave it out')
    if wanted == "wsgi" and looks == "asgi" and (_arguments(found) == 3 or inspect.iscoroutinefunction(_call(found))):
        raise TargetError("target", f'"{spec}" is an ASGI app', hint='set interface = "asgi", or leave it out')
    return wanted


def _detect(found: Any, spec: str, app: AppConfig) -> Literal["asgi", "wsgi"]:
    if isinstance(found, type):
        needed = _arguments(found)
        if inspect.iscoroutinefunction(getattr(found, "__await__", None)) or needed == 1:
            message = f'"{spec}" is a class of the old ASGI 2 kind'
            raise TargetError("target", message, hint="wrap it: asgiref.compatibility.guarantee_single_callable(app)")
        if needed == 0:
            message = f'"{spec}" is a class, not an app'
            raise TargetError("target", message, hint="to have it called once: factory = true, or --factory")
        return "asgi" if needed == 3 else "wsgi"
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(_call(found)):
        return "asgi"
    needed = _arguments(found)
    if needed == 3:
        return "asgi"
    if needed == 0 and not app.factory:
        message = f'"{spec}" takes no arguments, so it is not an app'
        raise TargetError("target", message, hint="if it returns the app: factory = true, or --factory")
    if needed == 1:
        hint = f"an ASGI 2 app can be wrapped: asgiref.compatibility.guarantee_single_callable(app)\n{_WANTS_ARGUMENTS}"
        raise TargetError("target", f'"{spec}" takes one argument: neither ASGI 3 nor WSGI', hint=hint)
    return "wsgi"


def _call(found: Any) -> Any:
    if inspect.isroutine(found) or isinstance(found, type):
        return found
    return vars(type(found)).get("__call__") or type(found).__call__


def _article(value: Any) -> str:
    name = "a module" if inspect.ismodule(value) else type(value).__name__
    return name if name.startswith("a ") else ("an " if name[0] in "aeiouAEIOU" else "a ") + name
