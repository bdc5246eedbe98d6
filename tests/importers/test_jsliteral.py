"""importers/jsliteral.py, jsexpression.py, jstokens.py, jsvalues.py: the plain part of JavaScript, as Node reads it; the rest has its line."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyworker.importers import pm2
from pyworker.importers.jsliteral import parse
from pyworker.importers.jsvalues import HERE, Computed, EnvironmentText
from pyworker.importers.result import CannotImport

SAME = [
    "module.exports = {a: 1, 'b': 2.5, \"c\": -3, 4: 'x',}",
    "export default [1, [2,], {}, null, true, false, 0x1F, 1_000, .5, 1e3]",
    r"module.exports = {a: 'it\'s', b: \"A\x41\u{1F600}\n\"}".replace('\\"', '"'),
    "const a = 1, b = 2;\nconst c = {x: a};\nmodule.exports = {...c, a, b, y: `t${a}`, z: 'p' + 2 * 3}",
    "'use strict';\n// one\n/* two\n */ module.exports = { /* here */ k: // and here\n 1 };",
    "module.exports = {a: 1 + 2 * 3, b: (1 + 2) * 3, c: 'x' + 1 + 2, g: - - 3, d: '' || 'y', e: 0 ?? 5, f: null ?? 0 ?? 5}",
    "const f = l => l.replace(/^[\"'`/](.*)[\"'`]$/, '$1').split(/\\s*=\\//);\nmodule.exports = {a: 1}",
    "const isMac = process.platform === 'darwin';\nmodule.exports = {a: isMac ? 'x' : 'y', b: 'a' != 'b' ? [1] : 2}",
    "module.exports = {a: Object.assign({}, {x: 1, y: 2}, {y: 3}), b: ['a', 1, null, true].join(' '), c: [1, 2].join()}",
    "const { join, resolve } = require('node:path');\nmodule.exports = {a: join('a', 'b', '..'), b: require('path').resolve('/a', 'b', '/c')}",
    "const path = require('path');\nmodule.exports = {a: path.dirname('/a/b/c'), b: path.dirname('a'), c: path.join('')}",
    "module.exports.apps = [{script: 'a.py'}];",
    "exports.apps = [{script: 'a.py'}]",
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
        ("function f() {}\nmodule.exports = f()", 2),
        ("module.exports = [{}].map(x => x)", 1),
        ("module.exports = {a() { return 1 }}", 1),
        ("module.exports = {a", 1),
        ("module.exports = {a: f(1}", 1),
        ("", 0),
        ("const x = 1", 0),
        ("name: 'a',", 0),
        ("module.exports = {a: 'open\n'}", 1),
        ("module.exports = " + "[" * 500, 1),
    ],
)
def test_what_only_running_it_could_tell_is_an_error_with_its_line(text: str, line: int) -> None:
    with pytest.raises(CannotImport) as caught:
        parse(text)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("f(1)", "f(1)"),
        ("x ? 1 : 2", "x ? 1 : 2"),
        ("!x", "!x"),
        ("() => { return {a: 1, b: [2]} }", "() => { return {a: 1, b: [2]} }"),
        ("require('fs').readFileSync('x')", "require('fs').readFileSync('x')"),
        ("process.env.A === 'b'", "process.env.A === 'b'"),
        ("os.cpus().length - 1", "os.cpus().length - 1"),
        ("`a${f(1)}`", "`a${f(1)}`"),
        ("unknown", "unknown"),
        ("parsed.a", "parsed.a"),
        ("'a' + null", "'a' + null"),
        ("`a${[1, 2]}`", "`a${[1, 2]}`"),
        ("process.env.A || null", "process.env.A || null"),
        ("process.env.A ?? {}", "process.env.A ?? {}"),
        ("[[1, 2]].join('')", "[[1, 2]].join('')"),
        ("process.env[null]", "process.env[null]"),
        ("process.env[process.env.A]", "process.env[process.env.A]"),
    ],
)
def test_a_value_that_is_computed_is_named_and_what_is_around_it_is_read(value: str, told: str) -> None:
    text = f"const os = require('os'), {{parsed}} = g()\nmodule.exports = {{a: 1,\n b: {value},\n c: [{value}, 2], d: 4}}"
    assert parse(text) == {"a": 1, "b": Computed(told, 3), "c": [Computed(told, 4), 2], "d": 4}


def test_statements_that_are_none_of_ours_are_passed_over_and_named() -> None:
    passed: list[Computed] = []
    text = """
require('dotenv').config();
import path from 'path'
const { version } = require('./package.json')
const twice = n => {
  return n * 2
}
function f(a, b) { if (a) { return "}" } else { return b } }
if (process.env.X) {
  console.log(`x ${version}`)
} else console.log('y')
module.exports = { apps: [{ ...process.env, script: 'a', v: version, w: twice(2) }] }
module.exports.apps.push(f(1, 2))
"""
    assert parse(text, passed) == {"apps": [{"script": "a", "v": Computed("version", 12), "w": Computed("twice(2)", 12)}]}
    assert [(p.line, p.text.split("(")[0]) for p in passed] == [
        (2, "require"),
        (9, "if "),
        (12, "process.env"),
        (13, "module.exports.apps.push"),
    ]


def test_names_are_followed_into_objects() -> None:
    text = "const c = {env: {A: 1}, list: ['x']};\nmodule.exports = {e: c.env, a: c.env.A, l: [...c.list], n: Number(c.env.A)}"
    assert parse(text) == {"e": {"A": 1}, "a": 1, "l": ["x"], "n": 1}


def test_a_module_of_javascript_knows_its_own_folder_and_the_functions_that_it_imports() -> None:
    text = """import path from 'path';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'url';
const __dirname = new URL('.', import.meta.url).pathname;
const here = dirname(fileURLToPath(import.meta.url));
export default { a: join('x', 'y'), b: path.join(__dirname, 'z'), c: path.dirname(__dirname), d: here }"""
    assert parse(text) == {"a": "x/y", "b": f"{HERE}/z", "c": f"{HERE}/..", "d": HERE}


def test_a_path_that_is_made_of_a_variable_stays_one() -> None:
    text = """const { homedir } = require('os'), path = require('path'), home = require('os').homedir();
module.exports = [path.join(process.env.HOME, '..', 'a'), path.join(homedir(), 'b'), `${home}/c`]"""
    found = parse(text)
    assert found == ["${HOME}/../a", "${HOME}/b", "${HOME}/c"]
    assert all(isinstance(value, EnvironmentText) for value in found)


def test_a_number_that_is_too_large_for_any_setting_is_said_to_be_looked_at() -> None:
    for text in ("1e400", "1" + "0" * 400, "1e300 * 1e300", "0x" + "f" * 400 + " * 2.5"):
        keys = ("instances", "max_restarts", "min_uptime", "kill_timeout", "max_memory_restart")
        settings = ", ".join(f"{key}: {text}" for key in keys)
        app = pm2.read(parse(f"module.exports = {{script: 'a.py', {settings}}}")).apps[0]
        assert {note.key for note in app.review} == set(keys)
        assert app.table == {"script": "a.py", "workers": "auto"}
