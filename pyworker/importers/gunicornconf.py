"""gunicorn.conf.py -> one app. Read with `ast`, never executed: constants, simple arithmetic, the number of CPUs and
os.environ are understood; whatever else is computed is named for the reader.
"""

from __future__ import annotations

import ast
import operator
import posixpath
import re
import warnings
from collections.abc import Callable
from typing import Any

from pyworker.config.check import clean_name
from pyworker.config.report import short
from pyworker.importers.result import ENVIRONMENT, MAX_TEXT, CannotImport, Imported, Note, Result
from pyworker.importers.servers import CONCURRENCY, GUNICORN, Dropped, gunicorn

_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
_CONVERSIONS: dict[str, Callable[[Any], Any]] = {"int": int, "str": str, "float": float}
_PATH_CALLS = ("path.join", "path.dirname", "path.abspath", "path.realpath", "path.normpath")
_SAME_PATH = ("resolve", "absolute", "as_posix")  # of a pathlib.Path
_PERCENT, _BRACES = re.compile(r"%[sd]"), re.compile(r"\{(?P<name>\w*)\}")
_LONGEST = 60  # characters of a text that others are put into, and of each of those


class _Unknown(Exception):
    """Something that only running the file could tell."""


class _Cpus:
    """A number that depends on the machine's CPUs."""


class _Path(str):
    """A pathlib.Path: a text that / makes longer."""


class _FromEnvironment:
    def __init__(self, name: str, default: Any) -> None:
        self.name = name
        self.default = default

    def __str__(self) -> str:
        return f"${{{self.name}}}" if self.default is None else f"${{{self.name}:-{self.default}}}"


def parsed(text: str) -> ast.Module:
    """Parse Python; what Python would warn of is not ours to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(text)
        except MemoryError:  # Python's word for brackets and signs in more levels than it parses
            raise RecursionError from None


def read(text: str, name: str = "web", file: str = "./gunicorn.conf.py") -> Result:
    """Return the app that the settings are of; its target is set only when the file has wsgi_app. `file` is __file__."""
    result = _read(text, name, file)
    (app,) = result.apps
    cwd = app.table.get("cwd", ".")
    if posixpath.normpath(cwd) != ".":  # seen from there its own folder is another one
        result = _read(text, name, posixpath.abspath(file))
        result.apps[0].table["cwd"] = cwd
    return result


def _read(text: str, name: str, file: str) -> Result:
    try:
        tree = parsed(text)
    except (SyntaxError, ValueError) as error:
        raise CannotImport(f"it is no Python file: {error}", line=getattr(error, "lineno", 0) or 0) from None
    app = Imported(clean_name(name))
    result = Result("gunicorn", [app], [ENVIRONMENT])
    known: dict[str, Any] = {"__file__": file}
    settings: dict[str, Any] = {}
    for node in tree.body:
        match node:
            case ast.Assign(targets=targets, value=value) if all(isinstance(target, ast.Name) for target in targets):
                for target in targets:
                    _setting(app, ast.unparse(target), value, known, settings)
            case ast.AnnAssign(target=ast.Name(id=key), value=ast.expr() as value):
                _setting(app, key, value, known, settings)
            case ast.FunctionDef(name=key) | ast.AsyncFunctionDef(name=key):
                if key in GUNICORN:
                    settings[key] = key
            case ast.ImportFrom(names=[ast.alias(name="*")], module=module):
                app.look(f"line {node.lineno}", f"settings of {module} are not in this")
            case ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
                pass
            case _:
                app.look(f"line {node.lineno}", f"is not carried over: {_shown(node)}")
    gunicorn(app, settings)
    dropped = {note.key for note in app.dropped}
    app.review = [note for note in app.review if note.key not in dropped]
    if "target" not in app.table:
        app.set("target", "CHANGE.ME:application", "target")
        app.translated.remove("target")
        app.look("target", "the file does not say which app: write the argument that gunicorn had, as module:attribute")
    if not settings:
        result.dropped.append(Note("all of it", "none of gunicorn's settings is in it"))
    return result


def _setting(app: Imported, key: str, node: ast.expr, known: dict[str, Any], settings: dict[str, Any]) -> None:
    try:
        value = _value(node, known)
    except _Unknown:
        known.pop(key, None)  # what it was before is not what it is
        settings.pop(key, None)
        if isinstance(GUNICORN.get(key), Dropped):
            settings[key] = None
        elif key in GUNICORN:
            app.look(key, f"is computed: {_shown(node)}; set it yourself")
        return
    known[key] = value
    if key not in GUNICORN:
        return
    if isinstance(value, _Cpus):
        if key == "workers":
            settings[key] = "auto"
            app.look(key, f"was {_shown(node)}; auto is one worker for each usable CPU")
        else:
            app.look(key, f"depends on the CPUs: {_shown(node)}")
    elif isinstance(value, _FromEnvironment):
        if key == "workers" and value.name == "WEB_CONCURRENCY":
            app.done(key)
            app.look(key, CONCURRENCY.format(_shown(node)))
        elif value.default is not None:
            settings[key] = value.default
            app.look(key, f"was ${value.name}, else {value.default!r}: only the second is carried over")
        else:
            app.look(key, f"was ${value.name}: set it yourself")
    else:
        settings[key] = value


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in known:
            return known[name]
        case ast.Dict():
            return {}  # no setting that is translated is one
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_item(item, known) for item in items]
        case ast.JoinedStr(values=parts):
            return _bounded("".join(_text(part, known) for part in parts))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_plain(_value(operand, known))
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _joined(_value(left, known), _value(right, known))
        case ast.Attribute(value=inner, attr="parent"):
            return _of_path(_value(inner, known), "parent")
        case ast.Call(func=ast.Attribute(value=inner, attr=attribute), args=[]) if attribute in _SAME_PATH:
            return _of_path(_value(inner, known), attribute)
        case ast.BinOp(left=ast.Constant(value=str(template)), op=ast.Mod(), right=right):
            items = right.elts if isinstance(right, ast.Tuple) else [right]
            return _filled(template, _PERCENT, [str(_item(item, known)) for item in items], {})
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str(template)), attr="format"), args=args, keywords=named
        ):
            texts = {str(word.arg): str(_item(word.value, known)) for word in named}
            return _filled(template, _BRACES, [str(_item(arg, known)) for arg in args], texts)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _arithmetic(op, _value(left, known), _value(right, known))
        case ast.BoolOp(op=ast.Or(), values=[first, second]):
            value = _value(first, known)
            if isinstance(value, _FromEnvironment) and value.default is None:
                return _FromEnvironment(value.name, _value(second, known))
            return value or _value(second, known)
        case ast.Subscript(value=inner, slice=ast.Constant(value=str(name))) if ast.unparse(inner) == "os.environ":
            return _FromEnvironment(name, None)
        case ast.Call(func=function, args=arguments):
            return _call(ast.unparse(function), arguments, known)
    raise _Unknown


def _item(node: ast.expr, known: dict[str, Any]) -> Any:
    """Return what stands in a list: of a variable the text that names it."""
    value = _value(node, known)
    if isinstance(value, _Cpus):
        raise _Unknown
    return str(value) if isinstance(value, _FromEnvironment) else value


def _call(name: str, arguments: list[ast.expr], known: dict[str, Any]) -> Any:
    short = name.rpartition(".")[2]
    if name.endswith(_PATH_CALLS) and arguments:
        parts = [_value(argument, known) for argument in arguments]
        if not all(isinstance(part, str) for part in parts):
            raise _Unknown
        if short == "join":
            return _bounded(posixpath.join(*parts))
        return _parent(parts[0]) if short == "dirname" else posixpath.normpath(parts[0])
    if name in ("Path", "pathlib.Path") and arguments:
        return _joined(_Path(), *(_value(argument, known) for argument in arguments))
    if short in ("cpu_count", "process_cpu_count", "usable_cpus"):
        return _Cpus()
    if name in ("os.environ.get", "os.getenv", "environ.get", "getenv") and arguments:
        default = _value(arguments[1], known) if len(arguments) > 1 else None
        return _FromEnvironment(str(_value(arguments[0], known)), None if isinstance(default, _Cpus) else default)
    if name in _CONVERSIONS and len(arguments) == 1:
        kind, value = _CONVERSIONS[name], _value(arguments[0], known)
        if isinstance(value, _Cpus):
            return value
        try:
            if isinstance(value, _FromEnvironment):
                return _FromEnvironment(value.name, None if value.default is None else kind(value.default))
            return kind(value)
        except (TypeError, ValueError):
            raise _Unknown from None
    if name in ("min", "max") and any(isinstance(_value(a, known), _Cpus) for a in arguments):
        return _Cpus()
    raise _Unknown


def _joined(first: Any, *rest: Any) -> _Path:
    if not isinstance(first, _Path) or not all(isinstance(part, str) for part in rest):
        raise _Unknown
    return _Path(_bounded(posixpath.join(first, *rest)))


def _of_path(value: Any, attribute: str) -> _Path:
    if not isinstance(value, _Path):
        raise _Unknown
    return _Path(_parent(value) if attribute == "parent" else value)


def _parent(path: str) -> str:
    """Return the folder that it is in; "." was an absolute path in the file, and has one above it, too."""
    return posixpath.join(path, "..") if posixpath.basename(path) in (".", "..") else posixpath.dirname(path) or "."


def _arithmetic(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(left, _Cpus) or isinstance(right, _Cpus):
        return _Cpus()
    if isinstance(left, str) or isinstance(right, str):
        if isinstance(op, ast.Add):
            return _bounded(f"{left}{right}")
        raise _Unknown
    try:
        return _OPERATORS[type(op)](_plain(left), _plain(right))
    except (ArithmeticError, TypeError):
        raise _Unknown from None


def _bounded(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise _Unknown
    return text


def _filled(template: str, places: re.Pattern[str], values: list[str], named: dict[str, str]) -> str:
    """Return what "…" % (…) and "…".format(…) make of plain places: %s, %d, {}, {0}, {name}."""
    left = iter(values)
    if any(len(text) > _LONGEST for text in (template, *values, *named.values())):
        raise _Unknown

    def one(match: re.Match[str]) -> str:
        key = match.groupdict().get("name", "")
        by_place = dict(enumerate(values))
        found = by_place.get(int(key)) if key.isdecimal() else named.get(key) if key else next(left, None)
        if found is None:
            raise _Unknown
        return found

    if re.search(r"[%{}]", places.sub("", template)):
        raise _Unknown
    return places.sub(one, template)


def _plain(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 10**12:
        raise _Unknown
    return value


def _text(node: ast.expr, known: dict[str, Any]) -> str:
    return str(_item(node.value if isinstance(node, ast.FormattedValue) else node, known))


def _shown(node: ast.AST) -> str:
    return short(" ".join(ast.unparse(node).split()))
