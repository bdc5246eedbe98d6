"""What a folder of Python sources is: Django, FastAPI, Flask, Starlette, another WSGI or ASGI app, a script. By `ast`.

`detect` is given the texts; it opens no file and imports nothing. `node_program` is for a folder without any.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shlex
from collections.abc import Collection, Mapping

from pyworker.importers.gunicornconf import parsed
from pyworker.record import record, replace

SOCKET_IO, FLASK_SOCKET_IO = "Socket.IO", "Flask-SocketIO"  # the first goes round the app of another framework
# in the app of another framework
_MOUNTED = {"run_with": "NiceGUI", "mount_gradio_app": "Gradio", "mount_chainlit": "Chainlit"}
IN_MEMORY = frozenset({SOCKET_IO, "Shiny", *_MOUNTED.values()})  # a worker knows only the sessions that began with it
_CLASSES = {
    "FastAPI": ("FastAPI", "asgi"), "Flask": ("Flask", "wsgi"), "Starlette": ("Starlette", "asgi"), "Quart": ("Quart", "asgi"),
    "Litestar": ("Litestar", "asgi"), "Sanic": ("Sanic", "asgi"), "Bottle": ("Bottle", "wsgi"),
    "get_wsgi_application": ("Django", "wsgi"), "get_asgi_application": ("Django", "asgi"),
    "default_app": ("Bottle", "wsgi"), "Dash": ("Dash", "wsgi"),
    "ProtocolTypeRouter": ("Django Channels", "asgi"), "ASGIApp": (SOCKET_IO, "asgi"),
}  # fmt: skip
# of names that others have, too (aiohttp's Application, Textual's App): by the module that they come from
_OF_MODULE = {
    "falcon.App": ("Falcon", "wsgi"), "falcon.asgi.App": ("Falcon", "asgi"), "blacksheep.Application": ("BlackSheep", "asgi"),
    "blacksheep.server.Application": ("BlackSheep", "asgi"), "emmett.App": ("Emmett", "asgi"), "shiny.App": ("Shiny", "asgi"),
    "strawberry.asgi.GraphQL": ("Strawberry", "asgi"),
}  # fmt: skip
_FACTORIES = {"create_app", "make_app", "get_app", "app_factory", "create_application"}
_FRAMEWORK_RANK = (
    SOCKET_IO, FLASK_SOCKET_IO, *_MOUNTED.values(), "Django Channels", "Django", "FastAPI", "Starlette", "Flask", "Quart", "Litestar", "Streamlit", "Panel",
    "Bokeh",
)  # fmt: skip
_SKIPPED = {"tests", "test", "docs", "examples", "migrations", "node_modules", "site-packages", "build", "dist"}
_OF_ASGI, _OF_WSGI = ["scope", "receive", "send"], ["environ", "start_response"]
_OF_A_SHELL = frozenset("&|;<>$`")
_NODE_NAMES = ("server.js", "index.js", "app.js", "main.js")
_MAIN_NAMES = ("main", "app", "asgi", "wsgi", "server", "run", "__main__", "streamlit_app", "Home")


@record
class Found:
    """Something that can be started. `target`, `script` or `command` is set."""

    what: str  # "FastAPI", "Django", "script"…
    file: str
    line: int
    target: str = ""
    script: str = ""
    command: tuple[str, ...] = ()
    factory: bool = False
    interface: str = ""  # asgi, wsgi, "" for a script
    cwd: str = ""  # where the module is imported from, when it is not the folder itself ("src")


def is_source(path: str) -> bool:
    """Whether a file is worth reading: Python, and not a test, a virtual environment or somebody else's."""
    parts = path.split("/")
    return (
        path.endswith(".py")
        and not any(p.startswith(".") or p in _SKIPPED or p.endswith("-packages") for p in parts[:-1])
        and not parts[-1].startswith(("test_", "conftest", "setup.py"))
    )


def detect(sources: Mapping[str, str]) -> list[Found]:
    """Return what was found, the most likely first. `sources`: relative path -> text."""
    packages = {os.path.dirname(p) for p in sources if os.path.basename(p) == "__init__.py"}
    found: list[Found] = []
    trees: dict[str, ast.Module] = {}
    for path, text in sources.items():
        try:
            trees[path] = parsed(text)
        except (SyntaxError, ValueError, RecursionError):
            continue
    for path, tree in trees.items():
        with contextlib.suppress(RecursionError):  # a condition of hundreds of terms
            found += _in_module(path, tree, _module_of(path, packages, _imports(tree, path, sources)))
    mounting = {"nicegui", "gradio", "chainlit"}
    calls = {name for tree in trees.values() if _imported(tree) & mounting for name in _called(tree)}
    for mounted in (_MOUNTED[name] for name in _MOUNTED if name in calls):
        found = [replace(f, what=mounted) if f.what in ("FastAPI", "Starlette") else f for f in found]
    if not any(f.what.startswith("Django") for f in found) and "manage.py" in sources:
        found += _bare_django(trees)
    return sorted(found or _only_script(trees), key=_rank)


def node_program(package: str, names: Collection[str]) -> list[Found]:
    """Return what `npm start` would run. `package`: the text of package.json; `names`: the files beside it.

    The program itself where that can be told: npm passes neither a port nor a channel on to it.
    """
    try:
        read = json.loads(package)
        said, main = read.get("scripts", {}).get("start"), read.get("main")
        start = shlex.split(said) if isinstance(said, str) else []  # of None it would read stdin
    except (ValueError, AttributeError, RecursionError):
        return []
    command: tuple[str, ...] = ()
    if start:
        is_node = start[0] == "node" and not _OF_A_SHELL.intersection("".join(start))
        command = tuple(start) if is_node else ("npm", "start")
    else:
        found = next((n for n in _NODE_NAMES if n in names), "")
        is_guess = main == "index.js" and main not in names  # `npm init` writes it into an empty folder
        # npm start prefers server.js to what `main` says
        if isinstance(main, str) and main and found != "server.js" and not (found and is_guess):
            found = main
        command = ("node", found) if found else ()
    return [Found("Node program", "package.json", 1, command=command)] if command else []


def _rank(found: Found) -> tuple[int, int, int, int, str, bool]:
    kind = 0 if (found.target and not found.factory) or found.what == FLASK_SOCKET_IO else 1 if found.target else 2
    framework = _FRAMEWORK_RANK.index(found.what) if found.what in _FRAMEWORK_RANK else len(_FRAMEWORK_RANK)
    stem = os.path.splitext(os.path.basename(found.file))[0]
    # Django has both files; wsgi is what its own template and most projects run
    order = 0 if (found.what, found.interface) == ("Django", "wsgi") else 1
    main = _MAIN_NAMES.index(stem) if stem in _MAIN_NAMES else len(_MAIN_NAMES)
    part = found.target.partition(":")[2] not in ("app", "application")  # of another app of that file, most likely
    return kind, framework, order, main + found.file.count("/"), found.file, part


def _only_script(trees: Mapping[str, ast.Module]) -> list[Found]:
    """A folder whose only program has no `if __name__ == "__main__"`: it does something when it is run."""
    does = [path for path, tree in trees.items() if "/" not in path and any(map(_does, tree.body))]
    return [Found("script", does[0], 1, script=does[0])] if len(does) == 1 else []


def _does(node: ast.stmt) -> bool:
    """Whether a statement of a module does something, beside defining and importing."""
    if isinstance(node, ast.Try):
        return any(map(_does, node.body))
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant)  # which is a docstring
    return isinstance(node, ast.While | ast.For | ast.With)


def _in_module(path: str, tree: ast.Module, place: tuple[str, str]) -> list[Found]:
    module, cwd = place
    found: list[Found] = []
    origins = _origins(tree)
    has_main = False
    for node in tree.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=name), *_], value=ast.Call(func=function))
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.Call(func=function))
            ):
                kind = _made_by(function, origins)
                if _last(function) in _FACTORIES:  # wsgi.py: app = create_app("production")
                    found.append(Found("an app", path, node.lineno, f"{module}:{name}", cwd=cwd))
                elif kind is not None:
                    attribute = f"{name}.server" if kind[0] == "Dash" else name
                    found.append(Found(kind[0], path, node.lineno, f"{module}:{attribute}", interface=kind[1], cwd=cwd))
            case ast.FunctionDef(name=name) if name in _FACTORIES and not _needs_arguments(node):
                kind = next(
                    (k for c in ast.walk(node) if isinstance(c, ast.Call) and (k := _made_by(c.func, origins))), None
                )
                if kind is not None:
                    found.append(
                        Found(kind[0], path, node.lineno, f"{module}:{name}", factory=True, interface=kind[1], cwd=cwd)
                    )
            case ast.AsyncFunctionDef(name=name, args=args) if [a.arg for a in args.args] == _OF_ASGI:
                found.append(Found("an ASGI app", path, node.lineno, f"{module}:{name}", interface="asgi", cwd=cwd))
            case ast.FunctionDef(name=name, args=args) if [a.arg for a in args.args] == _OF_WSGI:
                found.append(Found("a WSGI app", path, node.lineno, f"{module}:{name}", interface="wsgi", cwd=cwd))
            case ast.If(test=test) if "__name__" in ast.unparse(test) and "__main__" in ast.unparse(test):
                has_main = True
    made_by_factory = {f.what for f in found if not f.factory}
    found = [f for f in found if not (f.factory and f.what in made_by_factory)]
    if has_main and {"SocketIO", "socketio.run"} & _called(tree):  # as a WSGI app it would have no websockets
        found.append(Found(FLASK_SOCKET_IO, path, 1, script=path))
    if not found and (served := _served(path, tree, has_main)):
        found.append(served)
    elif has_main and not found and os.path.basename(path) != "manage.py":
        found.append(Found("script", path, 1, script=path))
    return found


def _served(path: str, tree: ast.Module, has_main: bool) -> Found | None:
    """Return a page that a program of its framework serves: run as a script, it shows nothing and ends."""
    imported = _imported(tree)
    called = _called(tree) if imported & {"panel", "bokeh"} else set()
    if "streamlit" in imported and (has_main or any(map(_does, tree.body))) and "pages" not in path.split("/"):
        return Found("Streamlit", path, 1, command=("streamlit", "run", path, "--server.headless", "true"))
    decorators = (d for node in tree.body for d in getattr(node, "decorator_list", ()))
    if "chainlit" in imported and any(_last(d).startswith("on_") for d in decorators):
        return Found("Chainlit", path, 1, command=("chainlit", "run", path, "--headless"))
    if "panel" in imported and "servable" in called:
        return Found("Panel", path, 1, command=("panel", "serve", path))
    if "bokeh" in imported and "curdoc" in called:
        return Found("Bokeh", path, 1, command=("bokeh", "serve", path))
    return None


def _called(tree: ast.Module) -> set[str]:
    """Return what is called: `run` and, of a name's own, `socketio.run`."""
    names: set[str] = set()
    for function in (node.func for node in ast.walk(tree) if isinstance(node, ast.Call)):
        names.add(_last(function))
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            names.add(f"{function.value.id}.{function.attr}")
    return names


def _bare_django(trees: Mapping[str, ast.Module]) -> list[Found]:
    """A project whose settings name its app: WSGI_APPLICATION = "shop.wsgi.application"."""
    found = []
    for path, tree in trees.items():
        for node in ast.walk(tree) if os.path.basename(path) == "settings.py" else ():
            match node:
                case ast.Assign(targets=[ast.Name(id="WSGI_APPLICATION")], value=ast.Constant(value=str(dotted))):
                    module, _, name = dotted.rpartition(".")
                    found.append(Found("Django", path, node.lineno, f"{module}:{name}", interface="wsgi"))
    return found


def _imports(tree: ast.Module, path: str, sources: Mapping[str, str]) -> bool:
    """Whether a file imports its neighbours as if their folder was where it is started: `import models`."""
    folder = os.path.dirname(path)

    def is_in(place: str, name: str) -> bool:
        start = os.path.join(place, name)
        return f"{start}.py" in sources or any(p.startswith(f"{start}/") for p in sources)

    return any(is_in(folder, name) and not is_in("", name) for name in _imported(tree))


def _imported(tree: ast.Module) -> set[str]:
    """Return the packages that a module imports as it begins."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def _origins(tree: ast.Module) -> dict[str, str]:
    """Return where the names that a module imports as it begins come from: App -> falcon.asgi.App."""
    origins: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            origins |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return origins


def _made_by(function: ast.expr, origins: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the framework and the interface of what a call makes."""
    names: list[str] = []
    left = function
    while isinstance(left, ast.Attribute):
        names.insert(0, left.attr)
        left = left.value
    if isinstance(left, ast.Name):
        names.insert(0, origins.get(left.id, left.id))
    return _OF_MODULE.get(".".join(names)) or _CLASSES.get(_last(function))


def _module_of(path: str, packages: set[str], is_started_here: bool) -> tuple[str, str]:
    """Return the dotted name of a file and the folder it is imported from."""
    folder, name = os.path.split(path)
    stem = name.removesuffix(".py")
    parts = [] if stem == "__init__" else [stem]
    if is_started_here and folder and folder not in packages:
        return stem, folder
    while folder and (folder in packages or not _is_root(folder, packages)):
        folder, package = os.path.split(folder)
        parts.insert(0, package)
    return ".".join(parts) or stem, folder


def _is_root(folder: str, packages: set[str]) -> bool:
    """src/shop/__init__.py is imported from src; a folder without __init__ and packages below is a namespace."""
    name = os.path.basename(folder)
    return any(os.path.dirname(p) == folder for p in packages) or name == "src" or not name.isidentifier()


def _needs_arguments(node: ast.FunctionDef) -> bool:
    arguments = node.args
    return len(arguments.args) + len(arguments.posonlyargs) > len(arguments.defaults)


def _last(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""
