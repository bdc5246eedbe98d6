"""The JSON Schema: what `check` accepts it accepts, and it knows every key of the schema."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from pyworker.config.convert import hints_of, table_class
from pyworker.config.jsonschema import schema
from pyworker.config.load import load
from pyworker.config.schema import AppConfig
from pyworker.record import fields

ROOT = Path(__file__).parents[2]
VALIDATOR = jsonschema.Draft7Validator(schema())


def examples() -> list[tuple[str, str]]:
    """Every config in configs/; those of the documents are in tests/docs/test_site.py."""
    return [(p.name, p.read_text()) for p in sorted((ROOT / "configs").glob("*.toml"))]


@pytest.mark.parametrize(("name", "text"), [pytest.param(*e, id=e[0]) for e in examples()])
def test_every_example_passes_both(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "app.toml").write_text(text)
    load(str(tmp_path / "app.toml"))
    VALIDATOR.validate(tomllib.loads(text))


def test_it_is_a_valid_schema_and_json() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    json.dumps(schema())


def test_every_key_is_in_it_with_its_help() -> None:
    definitions = schema()["definitions"]
    for field in fields(AppConfig):
        assert definitions["app"]["properties"][field.name]["description"]
        nested = table_class(hints_of(AppConfig)[field.name])
        if nested is not None:
            assert set(definitions[field.name]["properties"]) == {f.name for f in fields(nested)}


@pytest.mark.parametrize(
    "text",
    [
        "[app]\nworker = 1\n",
        '[app]\nworkers = "many"\n',
        "[app]\nworkers = 0\n",
        "[app]\nstop.drain_timeout = 30\n",
        '[app]\nstop.drain_timeout = "30 seconds"\n',
        '[app]\nlimits.memory = "512"\n',
        '[app]\nbalance = "roundrobin"\n',
        "[app]\nenv.A = 1\n",
        '[apps.Big]\ntarget = "a:b"\n',
        "[profiles.x]\nworkers = 1\n",
        "[app]\nhealth = true\n",
        '[app]\ntarget = "a:b"\nlogs = "api.log"\n',
        "top = 1\n",
    ],
)
def test_what_check_refuses_by_its_form_it_refuses_too(text: str, tmp_path: Path) -> None:
    assert not VALIDATOR.is_valid(tomllib.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        '[app]\nhealth = "/x"\nrestart = "never"\nwatch = true\ntls = false\n',
        '[app]\nworkers = "auto"\npreload = false\nargs = "a b"\nbind = ["a:1"]\n',
        '[app]\nlogs = "inherit"\n',
        '[defaults]\nlogs.max_size = "1.5 GB"\n[profiles.x.apps.web]\nworkers = 2\n',
    ],
)
def test_short_forms_are_in_it(text: str) -> None:
    VALIDATOR.validate(tomllib.loads(text))
