"""Records: what a dataclass is, defined in a hundredth of its time, and without `dataclasses`, which imports `inspect`.

A daemon defines some 200 of them before it can answer, a launcher and a template dozens, and makes instances of few. A
dataclass compiles its methods, up to six, as it is defined. Here all records share those for equality, hash and repr,
and `__init__` is compiled when the first instance is made. To the type checker they are dataclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from dataclasses import MISSING, Field, field, fields, replace

    def is_record(value: object) -> bool: ...
else:
    MISSING = type("Missing", (), {"__repr__": lambda self: "MISSING"})()

    class Field:
        """One field. `default` and `default_factory` are MISSING where there is none."""

        __slots__ = ("default", "default_factory", "metadata", "name", "type")

        def __init__(self, default, default_factory, metadata):
            self.name = self.type = ""  # the type as it is written
            self.default, self.default_factory, self.metadata = default, default_factory, metadata

    def field(*, default=MISSING, default_factory=MISSING, metadata=None):
        """Say more of a field than its default: what makes one for each instance, what is known of it besides."""
        return Field(default, default_factory, metadata or {})

    def fields(record):
        """Return the fields of a class or of an instance, in their order, its bases' first."""
        return tuple(record.__record_fields__.values())

    def is_record(value):
        """Whether this is a record: the class or an instance."""
        return hasattr(value, "__record_fields__")

    def replace(record, /, **changes):
        """Return another one with these values changed; TypeError for a name that is no field."""
        return record.__class__(**{**record.__dict__, **changes})


__all__ = ["MISSING", "Field", "compile_init", "field", "fields", "is_record", "mutable", "record", "replace"]

_T = TypeVar("_T", bound=type)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: _T) -> _T:
    """Make a class of annotated fields a record: compared and hashed by its values. That nobody assigns to a field is held by
    the type checker, not at run time."""
    _define(cls)
    cls.__hash__ = _hash  # type: ignore[assignment]
    return cls


@dataclass_transform(field_specifiers=(field,))
def mutable(cls: _T) -> _T:
    """The same of what changes: compared by its values, and without a hash."""
    _define(cls)
    cls.__hash__ = None  # type: ignore[assignment]
    return cls


def _define(cls: Any) -> None:
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:]):
        found |= getattr(base, "__record_fields__", {})
    for name, type_ in cls.__annotations__.items():
        said = vars(cls).get(name, MISSING)
        if isinstance(said, Field):
            found[name] = said
            if said.default is MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, said.default)
        else:
            found[name] = Field(said, MISSING, {})  # type: ignore[call-arg, arg-type]
        found[name].name, found[name].type = name, type_
    cls.__record_fields__ = found
    cls.__match_args__ = tuple(found)  # type: ignore[misc]
    cls.__eq__ = _equal
    if "__repr__" not in vars(cls):
        cls.__repr__ = _repr
    cls.__init__ = _init_at_first(cls)


def _init_at_first(cls: type) -> Callable[..., None]:
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        compile_init(cls)
        cls.__init__(self, *args, **kwargs)  # type: ignore[misc]

    __init__.waits = True  # type: ignore[attr-defined]
    return __init__


def compile_init(cls: Any) -> None:
    """Make a record's `__init__` now, so that processes that are forked from here need not."""
    if not hasattr(cls.__init__, "waits"):
        return
    names: dict[str, Any] = {"_MISSING": MISSING}
    parameters, lines = ["self"], []
    for name, field in cls.__record_fields__.items():
        default = f"_default_{name}"
        if field.default_factory is not MISSING:
            names[default] = field.default_factory
            parameters.append(f"{name}=_MISSING")
            lines.append(f"self.{name} = {default}() if {name} is _MISSING else {name}")
            continue
        if field.default is not MISSING:
            names[default] = field.default
        parameters.append(name if field.default is MISSING else f"{name}={default}")
        lines.append(f"self.{name} = {name}")
    exec(f"def __init__({', '.join(parameters)}):\n " + ("\n ".join(lines) or "pass"), names)
    cls.__init__ = names["__init__"]
    cls.__init__.__qualname__ = f"{cls.__qualname__}.__init__"


def _equal(self: object, other: object) -> bool:
    return self.__dict__ == other.__dict__ if type(self) is type(other) else NotImplemented


def _hash(self: object) -> int:
    return hash(tuple(self.__dict__.values()))


def _repr(self: object) -> str:
    return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"
