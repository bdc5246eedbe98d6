"""Where the values of an app come from, when its tables stand in several places."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyworker.config.load import load
from pyworker.config.origin import origins

FILE = """\
[defaults]
restart = "never"
limits.nofile = 1024
env = { A = "1", B = "2" }
[apps.a]
script = "a.py"
restart.window = "30s"
limits.memory = "100MB"
env.B = "3"
[profiles.p.apps.a.limits]
max_age = "1h"
"""


@pytest.mark.parametrize("profile", ["", "p"])
def test_a_value_is_found_below_a_table_of_the_same_name_that_does_not_have_it(tmp_path: Path, profile: str) -> None:
    (tmp_path / "app.toml").write_text(FILE)
    (app,) = load(str(tmp_path / "app.toml"), environ={}, profile=profile).apps
    found = origins(app, str(tmp_path / "app.toml"), {}, profile=profile)
    assert {key: (o.line, o.kind) for key, o in found.items() if o.kind != "default"} == {
        "script": (6, "file"),
        "restart.policy": (2, "defaults"),
        "restart.window": (7, "file"),
        "limits.nofile": (3, "defaults"),
        "limits.memory": (8, "file"),
        "env.A": (4, "defaults"),
        "env.B": (9, "file"),
        **({"limits.max_age": (11, "profile")} if profile else {}),
    }
