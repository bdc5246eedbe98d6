"""[profiles.NAME], depends_on, cron, watch and hooks in a file: what they come to, and what is said of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyworker.config.load import Loaded, load
from pyworker.config.problem import ConfigError

BASE = """
[defaults]
workers = 2
[apps.web]
target = "a:b"
bind = ":8000"
env.LEVEL = "info"
env.KEPT = "yes"
[apps.jobs]
command = "true"
[profiles.dev.defaults]
workers = 1
[profiles.dev.apps.web]
watch = true
env.LEVEL = "debug"
[profiles.big.apps.web]
workers = 8
"""


def read(tmp_path: Path, text: str, profile: str = "") -> Loaded:
    file = tmp_path / "app.toml"
    file.write_text(text)
    return load(str(file), profile=profile)


def problems(tmp_path: Path, text: str, profile: str = "") -> list[tuple[int, int, str, str]]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, profile)
    return [(p.line, p.column, p.message, p.hint) for p in caught.value.problems]


def test_without_a_profile_none_counts(tmp_path: Path) -> None:
    web, jobs = read(tmp_path, BASE).apps
    assert (web.workers, jobs.workers, web.watch, web.env) == (2, 2, None, {"LEVEL": "info", "KEPT": "yes"})


def test_a_profile_is_laid_on_the_tables_of_the_same_name(tmp_path: Path) -> None:
    web, jobs = read(tmp_path, BASE, "dev").apps
    assert (web.workers, jobs.workers) == (1, 1)
    assert web.watch is not None
    assert web.env == {"LEVEL": "debug", "KEPT": "yes"}
    assert read(tmp_path, BASE, "big").apps[0].workers == 8


def test_a_profile_of_a_single_app(tmp_path: Path) -> None:
    text = '[app]\nname = "x"\ntarget = "a:b"\n[profiles.dev.app]\nworkers = 3\n'
    assert read(tmp_path, text, "dev").apps[0].workers == 3


def test_a_mistake_in_a_profile_shows_before_it_is_used(tmp_path: Path) -> None:
    text = '[app]\ntarget = "a:b"\n[profiles.dev.app]\nworker = 3\n'
    assert problems(tmp_path, text) == [(4, 1, "unknown key `worker` in [profiles.dev.app]", "did you mean `workers`?")]


def test_an_option_beside_the_tables_of_a_profile_is_told_its_table(tmp_path: Path) -> None:
    text = '[app]\ntarget = "a:b"\n[profiles.dev]\nworkers = 3\nhealth.path = "/"\n'
    assert [hint for *_, hint in problems(tmp_path, text)] == [
        "write [profiles.dev.app] above it", "did you mean [profiles.dev.app.health]?"
    ]  # fmt: skip


def test_a_rule_that_the_profile_breaks_has_its_caret_in_the_profile(tmp_path: Path) -> None:
    text = '[app]\ntarget = "a:b"\nbind = ":1"\n[profiles.dev.app]\nbind = "nonsense"\n'
    assert [(line, column) for line, column, _, _ in problems(tmp_path, text, "dev")] == [(5, 8)]


@pytest.mark.parametrize(
    ("more", "profile", "message", "hint"),
    [
        ("", "prod", 'app.toml has no profile "prod"', "it has: dev, big"),
        ("", "bigg", "no profile", "did you mean `big`?"),
        ("[profiles.x.web]\nworkers = 1\n", "", "unknown key `web` in [profiles.x]", "[profiles.x.apps.NAME]"),
        ("[profiles.x.apps.wev]\nworkers = 1\n", "", "an app that this file does not have", "did you mean `web`?"),
        ("[profiles.x.app]\nworkers = 1\n", "", "changes an [app]", "[profiles.x.apps.NAME]"),
        ('[profiles.x.apps.web]\nname = "y"\n', "", "cannot give an app another name", "remove it"),
        ('[profiles.x.defaults]\nname = "y"\n', "", "cannot give an app another name", "remove it"),
    ],
)
def test_a_profile_for_something_that_is_not_there_or_has_another_name_is_refused(
    tmp_path: Path, more: str, profile: str, message: str, hint: str
) -> None:
    found = problems(tmp_path, BASE + more, profile)
    assert len(found) == 1
    assert message in found[0][2]
    assert hint in found[0][3]


def three(web: str = "", db: str = "", job: str = "") -> str:
    return (
        f'[apps.web]\ntarget = "a:b"\n{web}\n[apps.db]\ncommand = "true"\n{db}\n[apps.job]\ncommand = "true"\n{job}\n'
    )


@pytest.mark.parametrize(
    ("text", "line", "message", "hint"),
    [
        (three('depends_on = "jobb"'), 3, "no app of this file", "did you mean `job`?"),
        (three('depends_on = ["db"]', 'depends_on = "web"'), 3, "goes round in a circle", "web -> db -> web"),
        (three('depends_on = "web"'), 3, "goes round in a circle", "web -> web"),
        (three('depends_on = ["db", "job"]', "", 'cron = "* * * * *"'), 3, "which is a job", "comes and goes"),
        (three('cron = "* * * * *"'), 3, "is for scripts", "remove it"),
        (three('reload.cron = "* * *"'), 3, "five fields, not 3", "every day at 04:00"),
        (three('hooks.post_fork = "x"'), 3, "must be module:function", "shop.hooks:post_fork"),
        (three("", 'hooks.post_fork = "x:y"'), 6, "is for ASGI and WSGI apps", "remove it"),
        (three("", 'hooks.pre_start = "\'"'), 6, "cannot be split", "close the quotes"),
        (three("watch.paths = []"), 3, "is empty", "for example"),
        (three("watch = 1"), 3, "must be a table", "[apps.web.watch]"),
    ],
)
def test_mistakes_have_their_line_and_a_next_step(
    tmp_path: Path, text: str, line: int, message: str, hint: str
) -> None:
    found = problems(tmp_path, text)
    assert found[0][0] == line
    assert message in found[0][2]
    assert hint in found[0][3]


def test_a_circle_is_said_of_each_app_in_it(tmp_path: Path) -> None:
    found = problems(tmp_path, three('depends_on = "db"', 'depends_on = "job"', 'depends_on = "web"'))
    assert [line for line, *_ in found] == [3, 6, 9]
    found = problems(tmp_path, three('depends_on = "db"', 'depends_on = "job"', 'depends_on = "db"'))  # web only leads to it
    assert [line for line, *_ in found] == [6, 9]


def test_a_hook_is_a_command_of_its_own(tmp_path: Path) -> None:
    web = read(tmp_path, three("hooks.pre_start = \"python manage.py check --tag 'a b'\"")).apps[0]
    assert web.hooks.pre_start == ("python", "manage.py", "check", "--tag", "a b")
