"""Records: what a dataclass is, without `dataclasses`."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any, ClassVar

import pytest

from pyworker.record import MISSING, compile_init, field, fields, is_record, mutable, record, replace


@record
class Point:
    """A place."""

    x: int
    y: int = 2
    tags: dict[str, int] = field(default_factory=dict)
    label: str = field(default="here", metadata={"help": "its name"})


@record
class Named(Point):
    name: str = ""

    def __repr__(self) -> str:
        return f"<{self.name}>"


@mutable
class Counter:
    count: int = 0
    seen: list[int] = field(default_factory=list)


@record
class Nothing:
    pass


def test_fields_are_given_in_their_order_or_by_name_and_have_their_defaults() -> None:
    assert vars(Point(1)) == {"x": 1, "y": 2, "tags": {}, "label": "here"}
    assert vars(Point(1, 5, label="there")) == {"x": 1, "y": 5, "tags": {}, "label": "there"}
    assert vars(Nothing()) == {}
    assert (Point.y, Point.label) == (2, "here")
    assert not hasattr(Point, "tags")


def test_no_name_of_a_field_is_taken_for_what_stands_for_its_default() -> None:
    @record
    class Odd:
        a: int = 1
        a_: int = 2
        made: list[int] = field(default_factory=list)
        made_: str = "x"
        cls: int = 3

    assert vars(Odd()) == {"a": 1, "a_": 2, "made": [], "made_": "x", "cls": 3}


def test_each_instance_gets_what_a_factory_makes_for_it() -> None:
    one, other = Counter(), Counter()
    one.seen.append(1)
    assert (one.seen, other.seen) == ([1], [])
    mine: list[int] = []
    assert Counter(seen=mine).seen is mine


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Point(), "missing 1 required positional argument: 'x'"),
        (lambda: Point(1, z=3), "unexpected keyword argument 'z'"),
        (lambda: Point(1, 2, {}, "a", 5), "takes from 2 to 5 positional arguments but 6 were given"),
        (lambda: replace(Point(1), z=3), "unexpected keyword argument 'z'"),
    ],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_a_wrong_field_is_named_also_at_the_first_instance(call: Any, message: str, fresh: bool) -> None:
    if not fresh:
        compile_init(Point)
    with pytest.raises(TypeError, match=rf"Point.__init__\(\) .*{message}"):
        call()


def test_records_are_equal_and_hashed_by_their_values_and_only_to_their_own_class() -> None:
    class Same(Point):
        pass

    assert Point(1) == Point(1, 2)
    assert Point(1) != Point(2)
    assert Point(1) != Same(1)
    assert hash(Named(1, tags=None)) == hash(Named(1, tags=None))  # type: ignore[arg-type]
    assert Counter(1) == Counter(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Counter())


def test_a_record_of_a_record_has_the_fields_of_both() -> None:
    named = Named(1, name="a")
    assert [f.name for f in fields(Named)] == ["x", "y", "tags", "label", "name"]
    assert [f.name for f in fields(named)] == ["x", "y", "tags", "label", "name"]
    assert [f.name for f in fields(Point)] == ["x", "y", "tags", "label"]
    assert (named.x, named.name) == (1, "a")


def test_repr_is_how_it_is_made_unless_the_class_has_its_own() -> None:
    assert repr(Point(1)) == "Point(x=1, y=2, tags={}, label='here')"
    assert repr(Named(1, name="a")) == "<a>"


def test_fields_say_their_type_their_default_and_what_else_is_known() -> None:
    x, y, tags, label = fields(Point)
    assert (x.type, x.default, x.default_factory) == ("int", MISSING, MISSING)
    assert (y.default, y.metadata) == (2, {})
    assert (tags.default, tags.default_factory) == (MISSING, dict)
    assert label.metadata == {"help": "its name"}


def test_replace_changes_a_copy() -> None:
    point = Point(1)
    assert replace(point, y=7) == Point(1, 7)
    assert point.y == 2


def test_classes_and_instances_are_known_for_records() -> None:
    assert all(is_record(each) for each in (Point, Point(1), Counter, Nothing))
    assert not any(is_record(each) for each in (int, 1, ClassVar, None))


def test_a_positional_pattern_finds_the_fields() -> None:
    match Point(1, 3):
        case Point(x, y):
            assert (x, y) == (1, 3)
        case _:
            pytest.fail("no match")


def test_instances_are_copied_and_pickled() -> None:
    for made in (copy.copy(Point(1)), copy.deepcopy(Point(1)), pickle.loads(pickle.dumps(Point(1)))):
        assert made == Point(1)


def test_init_is_compiled_at_the_first_instance_or_when_asked() -> None:
    @record
    class Late:
        a: int = 1

    waiting = Late.__init__
    Late()
    assert Late.__init__ is not waiting
    made = Late.__init__
    compile_init(Late)
    assert Late.__init__ is made


def test_defining_records_imports_no_inspect() -> None:
    code = "import sys, pyworker.protocol.store; print(sorted({'inspect', 'dataclasses'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
