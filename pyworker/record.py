"""Records: what `@dataclass(frozen=True)` is, made in a quarter of its time.

A daemon defines some 180 of them before it can answer, a launcher and a template dozens. Most of the second that a
frozen dataclass takes for a thousand fields goes into methods compiled for each class (`__setattr__`, `__eq__`,
`__repr__`, the signature for a docstring): here all classes share them. That nobody assigns to a field is held by the
type checker, not at run time.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

_T = TypeVar("_T", bound=type)
_make = dataclasses.dataclass(eq=False, repr=False)


def _equal(self: object, other: object) -> bool:
    return self.__dict__ == other.__dict__ if type(self) is type(other) else NotImplemented


def _hash(self: object) -> int:
    return hash(tuple(self.__dict__.values()))


def _repr(self: object) -> str:
    return f"{type(self).__qualname__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def record(cls: _T) -> _T:
    """Make a class of annotated fields a record: compared and hashed by its values. `dataclasses.fields` and `replace` work."""
    undocumented = cls.__doc__ is None
    if undocumented:
        cls.__doc__ = "-"  # or dataclasses would write the signature there, which is half of the cost that is left
    made: Any = _make(cls)
    if undocumented:
        made.__doc__ = None
    made.__eq__, made.__hash__ = _equal, _hash
    if "__repr__" not in vars(cls):
        made.__repr__ = _repr
    return made  # type: ignore[no-any-return]
