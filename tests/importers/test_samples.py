"""Files of the kind that public projects have: each becomes an app.toml that `check` accepts, with a word on each setting."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyworker.config.jsonschema import schema
from pyworker.config.load import load
from pyworker.config.problem import ConfigError
from pyworker.importers import gunicornconf, jsliteral, jsvalues, pm2, procfile, supervisor, systemd, uwsgi
from pyworker.importers.kinds import kind_of
from pyworker.importers.result import CannotImport, Imported, Result
from pyworker.importers.write import document, report

SAMPLES = Path(__file__).parent / "samples"


def read(name: str, profile: str = "", text: str = "") -> Result:
    text = text or (SAMPLES / name).read_text()
    match kind_of(name, text):
        case "pm2" if name.endswith(".yaml"):
            return pm2.read(yaml.safe_load(text), profile)
        case "pm2" if name.endswith((".js", ".cjs")):
            passed: list[jsvalues.Computed] = []
            return pm2.read(jsliteral.parse(text, passed), profile, passed)
        case "pm2":
            return pm2.read(jsliteral.parse("module.exports = " + text), profile)
        case "supervisor":
            return supervisor.read(text)
        case "gunicorn":
            return gunicornconf.read(text, "shop")
        case "uwsgi":
            return uwsgi.read(text, "shop", ".", name.partition(".")[0])
        case "systemd":
            return systemd.read(text, name.removesuffix(".service"))
        case "procfile":
            return procfile.read(text)
    raise CannotImport(f"{name} is of no known kind")


def app(result: Result, name: str) -> Imported:
    return next(a for a in result.apps if a.name == name)


@pytest.mark.parametrize("name", sorted(p.name for p in SAMPLES.iterdir() if p.is_file()))
def test_every_sample_becomes_a_file_that_check_accepts(name: str, tmp_path: Path) -> None:
    import jsonschema

    text = document(read(name), name)
    file = tmp_path / "app.toml"
    file.write_text(text)
    assert load(str(file)).apps
    jsonschema.Draft7Validator(schema()).validate(tomllib.loads(text))
    json.dumps(report(read(name)))


PIECES = ["$", "${", "%(", "{", "}", "[", "]", "'", '"', "`", "\\", ";", "=", ":", "\n", "-w 9", "--", "null", "\0", "\t", "..."]


@pytest.mark.parametrize("name", sorted(p.name for p in SAMPLES.iterdir() if p.is_file()))
def test_a_damaged_file_is_imported_or_refused_in_words(name: str, tmp_path: Path) -> None:
    chance = random.Random(name)
    file = tmp_path / "app.toml"
    whole = (SAMPLES / name).read_text()
    for _ in range(20):
        text = whole
        for _ in range(chance.randint(1, 4)):
            begin = chance.randrange(len(text) + 1)
            end = min(len(text), begin + chance.choice([0, 1, 3, 20, 80]))
            text = text[:begin] + chance.choice([*PIECES, text[begin:end] * 2, ""]) + text[end:]
        with contextlib.suppress(CannotImport, ConfigError, yaml.YAMLError):
            file.write_text(document(read(name, text=text), name))
            load(str(file))


def test_quotes_that_are_not_closed_and_keys_that_are_no_texts() -> None:
    (web,) = supervisor.read("[program:web]\ncommand=x\nenvironment=A=\"b\n").apps
    assert "could not be split" in web.review[0].reason
    (job,) = pm2.read({"apps": [{"script": "a.sh", "args": "it's", 1: 2}]}).apps
    assert job.table["command"] == ["bash", "a.sh", "it's"]
    assert [n.key for n in job.dropped] == ["1"]


def test_an_ecosystem_file() -> None:
    result = read("ecosystem.config.js")
    api, mailer, front = result.apps
    assert api.table == {
        "target": "shop.main:app",
        "python": ".venv",
        "bind": "127.0.0.1:8000",
        "cwd": ".",
        "workers": "auto",
        "limits": {"memory": "300MB"},
        "restart": {"max_restarts": 5, "min_uptime": "20s"},
        "stop": {"kill_timeout": "1600ms"},
        "env": {"LOG_LEVEL": "info", "PRICE": "5$$", "DATABASE_URL": "${DATABASE_URL:-sqlite://}"},
        "logs": {"file": "./logs/out.log"},
    }
    assert mailer.name == "mailer"
    assert mailer.table["script"] == "jobs/mail.py"
    assert mailer.table["args"] == ["--queue", "mail"]
    assert mailer.table["python"] == "./venv"
    assert mailer.table["reload"] == {"cron": "0 4 * * *"}
    assert mailer.table["watch"] == {"paths": ["jobs"], "exclude": ["jobs/tmp", "node_modules"]}
    assert front.table["command"] == ["node", "--max-old-space-size=512", "server.js"]
    assert [n.key for n in front.dropped] == ["max_restart"]
    assert [n.key for n in result.dropped] == ["deploy"]


def test_another_environment_of_a_pm2_file_is_taken_when_asked_for() -> None:
    api = read("ecosystem.config.js", "production").apps[0]
    assert api.table["env"]["LOG_LEVEL"] == "warning"


def test_a_dump_counts_the_processes_and_leaves_the_shell_out() -> None:
    (api,) = read("dump.pm2").apps
    assert api.table == {"script": "/srv/api/main.py", "cwd": "/srv/api", "workers": 2, "env": {"PORT": "9000"}}


def test_a_supervisor_file() -> None:
    result = read("supervisord.conf")
    web, celery = result.apps
    assert web.table["target"] == "shop.wsgi:application"
    assert web.table["env"] == {
        "DJANGO_SETTINGS_MODULE": "shop.settings", "SECRET_KEY": "${SECRET_KEY}", "GREETING": "a,b"
    }  # fmt: skip
    assert web.table["restart"] == {"policy": "on-failure", "min_uptime": "5s", "max_restarts": 3}
    assert web.table["stop"] == {"signal": "QUIT", "kill_timeout": "600s"}
    assert web.table["logs"] == {"file": "/var/log/shop/web.log", "max_size": "20MB", "max_files": 3}
    assert celery.table["workers"] == 2
    assert "worker$PYWORKER_WORKER" in celery.table["command"][2]
    assert {n.key for n in result.dropped} >= {"[group:shop]", "[include]", "[eventlistener:crashmail]"}


def test_what_supervisord_gives_to_all_programs_and_does_by_default_is_not_lost() -> None:
    text = """
[supervisord]
environment=MODE="prod",KEY="all"
user=deploy
[program:a]
command=sleep 1
environment=KEY="own"
[program:b]
command=sleep 2
exitcodes=0,2
"""
    result = supervisor.read(text)
    a, b = result.apps
    assert a.table["env"] == {"MODE": "prod", "KEY": "own"}
    assert b.table["env"] == {"MODE": "prod", "KEY": "all"}
    assert a.table["restart"] == {"policy": "on-failure"}
    assert [n.key for n in b.review] == ["exitcodes"]
    assert "deploy" in result.dropped[0].reason


def test_a_relative_path_of_supervisor_is_from_where_supervisord_runs() -> None:
    program = "[program:web]\ncommand=x\nstdout_logfile=log/web.log\ndirectory=/srv/shop\n"
    (web,) = supervisor.read(program).apps
    assert (web.table["logs"], [n.key for n in web.review]) == ({"file": "log/web.log"}, ["stdout_logfile"])
    (web,) = supervisor.read("[supervisord]\ndirectory=/srv\n" + program).apps
    assert (web.table["logs"], web.table["cwd"], web.review) == ({"file": "/srv/log/web.log"}, "/srv/shop", [])
    (web,) = supervisor.read("[supervisord]\ndirectory=/srv\n" + program.replace("=/srv/shop", "=shop")).apps
    assert web.table["cwd"] == "/srv/shop"
    (web,) = supervisor.read("[supervisord]\ndirectory=/srv\n[program:web]\ncommand=x\nstderr_logfile=%(here)s/e\n", "/etc").apps
    assert (web.table["cwd"], web.table["logs"]) == ("/srv", {"file": "/etc/e"})
    (web,) = supervisor.read("[supervisord]\ndirectory=/srv\nnodaemon=true\n[program:web]\ncommand=x\n").apps
    assert "cwd" not in web.table, "it runs where it was started"
    (web,) = supervisor.read(program.replace("=log", "=%(here)s/log").replace("=x", "=%(here)s/x"), ".").apps
    assert (web.table["logs"]["file"], web.table["command"]) == (os.path.abspath("log/web.log"), [os.path.abspath("x")])
    included = "[program:web]\ncommand=x %(here)s/c\ndirectory=%(here)s\n"
    (web,) = supervisor.read("[include]\nfiles=d/*\n", ".", [("./d/web.conf", included)]).apps
    assert (web.table["cwd"], web.table["command"]) == (os.path.abspath("d"), ["x", os.path.abspath("d/c")])


def test_that_the_terminal_of_a_container_is_not_rotated_needs_no_look() -> None:
    (web,) = supervisor.read("[program:web]\ncommand=x\nstdout_logfile=/dev/stdout\nstdout_logfile_maxbytes=0\n").apps
    assert (web.review, web.table.get("logs")) == ([], None)


def test_a_program_of_supervisor_knows_the_name_of_its_group() -> None:
    text = "[program:web]\ncommand=x %(group_name)s\n[program:alone]\ncommand=x %(group_name)s\n"
    web, alone = supervisor.read(text, "/etc", [("/etc/more.conf", "[group:shop]\nprograms = api, web\n")]).apps
    assert (web.table["command"], alone.table["command"]) == (["x", "shop"], ["x", "alone"])


def test_an_autorestart_that_is_none_of_supervisor_s_is_named_beside_its_exit_codes() -> None:
    (one,) = supervisor.read("[program:a]\ncommand = a\nautorestart = maybe\nexitcodes = 0,2\n").apps
    assert [(note.key, note.reason) for note in one.review] == [("autorestart", "'maybe': set restart.policy")]


def test_supervisord_has_no_shell_and_none_is_made_of_it() -> None:
    result = supervisor.read(
        "[program:a]\ncommand=grep -e 'a|b' $5 *.txt\n"
        "[program:b]\ncommand=gunicorn shop:app --access-logformat '<%%(h)s>'\n"
        "[program:c]\ncommand=work --to %(ENV_QUEUE)s\n"
        "[program:d]\ncommand=sh -c 'a | b'\n"
    )
    a, b, c, d = (app.table for app in result.apps)
    assert a["command"] == ["grep", "-e", "a|b", "$5", "*.txt"]
    assert b["target"] == "shop:app"
    assert c["command"] == ["sh", "-c", "exec work --to ${QUEUE}"]
    assert d["command"] == ["sh", "-c", "a | b"]


@pytest.mark.parametrize("args", ["start -p 3001", ["start", "--port=3001", "-x"]])
def test_the_port_of_a_node_program_may_be_one_of_its_arguments(args: str | list[str]) -> None:
    env = {"PORT": "1"}
    (app,) = pm2.read({"apps": [{"script": "next.js", "args": args, "env": env, "instances": 2, "env_x": env}]}).apps
    assert app.table["bind"] == ":3001"
    assert "bind" not in app.profiles["x"]


def test_node_programs_of_pm2_s_cluster_mode_share_their_port() -> None:
    (web,) = pm2.read({"apps": [{"script": "s.js", "instances": "max", "env": {"PORT": 3001}}]}).apps
    assert (web.table["bind"], web.table["balance"], web.table["workers"]) == (":3001", "round-robin", "auto")
    (other,) = pm2.read({"apps": [{"script": "s.js", "exec_mode": "cluster", "instances": 2}]}).apps
    assert "made up" in other.review[0].reason
    (alone,) = pm2.read({"apps": [{"script": "s.js", "env": {"PORT": 3001}}]}).apps
    assert "bind" not in alone.table


def test_the_port_of_another_environment_is_the_one_that_is_shared_there() -> None:
    app = {"script": "s.js", "instances": 2, "env": {"PORT": 1}, "env_production": {"PORT": 80}, "env_test": {"A": 1}}
    result = pm2.read({"apps": [app]})
    (web,) = result.apps
    assert '[profiles.production.app]\nbind = ":80"\n\n[profiles.production.app.env]\nPORT' in document(result, "a.json")
    assert web.profiles == {"production": {"env": {"PORT": "80"}, "bind": ":80"}, "test": {"env": {"A": "1"}}}


def test_files_that_pm2_watches_are_watched_by_their_folders_and_its_file_server_is_named() -> None:
    (web,) = pm2.read({"apps": [{"script": "s.js", "watch": ["s.js", "lib", "src/a.js", "src/b.js"]}]}).apps
    assert web.table["watch"] == {"paths": [".", "lib", "src"]}
    assert any(n.reason.startswith("s.js, src/a.js, src/b.js: folders are watched") for n in web.review)
    (files,) = pm2.read({"apps": [{"script": "serve", "env": {"PM2_SERVE_PORT": 8080}}]}).apps
    assert "python3 -m http.server" in files.review[0].reason


def test_a_port_of_its_own_is_not_lost_and_what_nobody_needs_is_left_out_however_it_is_computed() -> None:
    text = "bind = f\"0.0.0.0:{os.environ.get('PORT', 9000)}\"\npidfile = str(BASE / 'g.pid')\n"
    (app,) = gunicornconf.read(text).apps
    said = {n.key: n.reason for n in app.review}
    assert 'bind = "0.0.0.0:9000"' in said["bind"]
    assert "pidfile" not in said
    assert [n.key for n in app.dropped] == ["pidfile"]
    (usual,) = gunicornconf.read("bind = '0.0.0.0:' + os.environ.get('PORT', '8000')\n").apps
    assert "9000" not in str(usual.review)
    assert "not 8000" not in str(usual.review)


def test_each_hook_of_gunicorn_s_is_answered_with_what_is_nearest_here() -> None:
    (app,) = gunicornconf.read("def when_ready(s): pass\ndef worker_abort(w): pass\nworkers = int(os.getenv('WEB_CONCURRENCY', cpu_count() * 2))\n").apps
    said = {n.key: n.reason for n in app.review}
    assert "hooks.on_event" in said["when_ready"]
    assert "stacks" in said["worker_abort"]
    assert "was int(os.getenv('WEB_CONCURRENCY', cpu_count() * 2))" in said["workers"]


def test_a_gunicorn_file_is_read_and_not_run() -> None:
    (shop,) = read("gunicorn.conf.py").apps
    assert shop.table["bind"] == "0.0.0.0:8000"
    assert shop.table["workers"] == "auto"
    assert shop.table["threads"] == 4
    assert shop.table["stop"] == {"drain_timeout": "90s"}
    assert shop.table["limits"] == {"request_timeout": "30s", "max_requests": 1000, "max_requests_jitter": 100}
    looks = {n.key for n in shop.review}
    assert {"bind", "workers", "threads", "post_fork", "timeout"} <= looks
    assert any("os.environ.get('DEBUG')" in n.reason for n in shop.review)
    assert shop.name == "shop"  # its proc_name
    assert {"errorlog", "loglevel", "pidfile"} <= {n.key for n in shop.dropped}


def test_a_uwsgi_file() -> None:
    (shop,) = read("uwsgi.ini").apps
    assert shop.table["target"] == "shop.wsgi:application"
    assert (shop.table["cwd"], shop.table["python"]) == ("/srv/shop", "/srv/shop/venv")
    assert shop.table["bind"] == ["unix:/run/shop.sock", "127.0.0.1:8080"]
    assert shop.table["limits"]["memory"] == "512MB"
    assert shop.table["preload"] is False
    assert "something-odd" in {n.key for n in shop.dropped}
    assert {"socket", "cron2"} <= {n.key for n in shop.review}


def test_each_job_of_a_uwsgi_file_is_named_by_what_it_runs() -> None:
    text = "[uwsgi]\nmodule = shop\ncron = 0 4 -1 -1 -1 clean\ncron = 0 5 -1 -1 -1 send\n"
    (shop,) = uwsgi.read(text).apps
    assert [n.reason.partition(": ")[0] for n in shop.review] == ["0 4 -1 -1 -1 clean", "0 5 -1 -1 -1 send"]


def test_a_section_that_a_uwsgi_file_takes_in_is_read_once_and_in_its_place() -> None:
    text = "[uwsgi]\nini = :base\nmodule = %(project)\n[base]\nproject = shop\nthreads = 3\nini = :uwsgi\nini = :base\n"
    (shop,) = uwsgi.read(text).apps
    assert (shop.table["target"], shop.table["threads"]) == ("shop:application", 3)
    assert [n.key for n in shop.review] == ["ini", "ini"]


def test_a_procfile() -> None:
    result = read("Procfile")
    assert app(result, "web").table == {"target": "shop.wsgi:application", "workers": 3}
    assert app(result, "api").table["factory"] is True
    assert app(result, "clock").table == {"script": "clock.py", "args": ["--tick", "5"]}
    assert app(result, "worker").table["env"] == {"DEBUG": "1"}
    assert [n.key for n in result.dropped] == ["release", "the environment"]


def test_variables_of_the_command_line_of_a_gunicorn_are_looked_up_as_its_shell_did() -> None:
    (app,) = procfile.read("web: gunicorn --env A=$B -e C=${D} -e $E --pythonpath lib,$P shop:app\n").apps
    assert app.table["env"] == {"A": "${B:-}", "C": "${D}", "PYTHONPATH": "lib:${P:-}"}
    assert [(note.key, note.reason) for note in app.review] == [("gunicorn raw_env", "was ${E:-}: write it into env")]


def settings_of(name: str) -> dict[str, set[str]]:
    """The settings that a sample states, by app, in the words of the report."""
    value: Any = yaml.safe_load((SAMPLES / name).read_text())
    return {a["name"]: set(a) - {"name"} for a in value["apps"]}


def test_a_release_of_a_procfile_is_named_as_a_hook_takes_it() -> None:
    for line, hook in (
        ("./a b", '"./a b"'), ("./a && ./b", '["sh", "-c", "./a && ./b"]'), ("a $B", '["sh", "-c", "a $B"]'),
        ("rm *.pid", '["sh", "-c", "rm *.pid"]'), ("A=1 b", '["sh", "-c", "A=1 b"]'), ("a ~/b", '["sh", "-c", "a ~/b"]'),
    ):  # fmt: skip
        dropped = procfile.read(f"web: python a.py\nrelease: {line}\n").dropped
        assert f"hooks.pre_start = {hook} of" in dropped[0].reason


def test_no_setting_is_passed_over_in_silence() -> None:
    result = read("ecosystem.yaml")
    for imported in result.apps:
        named = {*imported.translated, *(n.key for n in imported.review), *(n.key for n in imported.dropped)}
        assert settings_of("ecosystem.yaml")[imported.name] <= named


def test_what_an_ecosystem_file_computes_is_named_and_the_rest_translated() -> None:
    result = read("billing.config.js")
    api, worker, beat = result.apps
    assert api.table["workers"] == 3, "instances: 1 is one gunicorn, with its three workers"
    assert api.table["env"] == {"DJANGO_SETTINGS_MODULE": "billing.settings"}
    assert {n.key for n in api.review} >= {"watch", "max_memory_restart", "out_file", "error_file", "env.RELEASE"}
    assert "line 25: isProduction ? '1G' : '400M' is computed" in next(
        n.reason for n in api.review if n.key == "max_memory_restart"
    )
    assert worker.table["command"][-1] == "CHANGE.ME"
    assert worker.table["stop"] == {"kill_timeout": "60s"}
    assert (beat.table["script"], beat.table["python"]) == ("manage.py", "./venv")
    assert [(n.key, n.reason.split(":")[0]) for n in result.dropped] == [
        ("line 2", "require('dotenv').config()"),
        ("line 29", "process.env"),
    ]


def test_shells_and_variables_of_a_pm2_file() -> None:
    fastapi, bot, flask, site = read("pm2.config.cjs").apps
    assert (fastapi.table["target"], fastapi.table["workers"], fastapi.table["watch"]) == ("main:app", 4, True)
    assert bot.table["command"] == ["sh", "-c", "exec python3 bot.py --token $TOKEN"]
    assert bot.table["watch"] == {"exclude": ["logs", "*.db"]}
    assert flask.table["env"]["SECRET"] == "a$$b$$$$c"
    assert (site.table["command"], site.table["cwd"]) == (["npm", "start"], "web")


def test_a_dump_that_has_the_shell_beside_the_settings() -> None:
    (api,) = read("flattened.dump.pm2").apps
    assert api.table == {"target": "main:app", "cwd": "/srv/api", "bind": "127.0.0.1:9100", "python": "/usr/bin/python3"}
    assert {n.key for n in api.dropped} == {"out_file", "error_file"}


def test_what_pm2_itself_adds_to_a_dump_is_no_setting() -> None:
    env = {"PM2_HOME": "/srv/pm2", "web": "{}", "PORT": "80", "LANG": "C"}
    logs = {"pm_out_log_path": "/srv/pm2/logs/web-out-0.log", "pm_err_log_path": "/srv/pm2/logs/web-error-0.log"}
    entry = {"name": "web", "pm_exec_path": "/srv/web.js", "_pm2_version": "7", "env": env, **env, **logs}
    (web,) = pm2.read([entry]).apps
    assert web.table == {"command": ["node", "/srv/web.js"], "env": {"PORT": "80"}}
    assert [(n.key, n.reason.partition(" ")[0]) for n in web.review] == [("env", "2")]
    assert {n.key for n in web.dropped} == {"out_file", "error_file"}


def test_another_environment_is_a_profile_and_a_script_at_times_a_job() -> None:
    api, worker = read("ports.yaml").apps
    assert api.profiles == {"production": {"env": {"PORT": "80"}}}
    assert worker.table == {"command": ["bash", "./worker.sh"], "cron": "*/5 * * * *"}
    text = document(read("ports.yaml"), "ports.yaml")
    assert '[profiles.production.apps.api-1.env]\nPORT = "80"' in text


def test_the_digits_of_a_process_number_of_supervisor_are_told_as_a_shell_writes_them() -> None:
    text = "[program:x]\ncommand=serve --port=90%(process_num)02d\nnumprocs=4\n"
    for start, number in (("", "$((PYWORKER_WORKER -1))"), ("numprocs_start=1\n", "$PYWORKER_WORKER"), ("numprocs_start=20\n", "$((PYWORKER_WORKER +19))")):
        (x,) = supervisor.read(text + start, "/", []).apps
        assert any(f"write $(printf %02d {number}) in a" in note.reason for note in x.review)


def test_included_files_of_supervisor_are_read() -> None:
    folder = str(SAMPLES / "supervisor")
    text = (SAMPLES / "supervisor" / "supervisord.conf").read_text()
    assert supervisor.included(text, folder) == [f"{folder}/conf.d/*.conf"]
    inner = SAMPLES / "supervisor" / "conf.d" / "site.conf"
    result = supervisor.read(text, folder, [(str(inner), inner.read_text())])
    web = app(result, "site-web")
    assert web.table["workers"] == 6, "three processes with two workers each"
    assert "bind" not in web.table
    assert any("80$PYWORKER_WORKER" in n.reason for n in web.review)
    assert web.table["env"]["DATABASE_PASSWORD"] == "pa$$$$word%"
    assert web.table["env"]["PATH"] == "/home/site/env/bin:${PATH}"
    assert app(result, "site-rq").review == []
    assert app(result, "site-channels").table["bind"] == "localhost:8001"
    assert app(result, "cron").table["command"][:2] == ["/bin/bash", "-c"]
    with pytest.raises(CannotImport):
        supervisor.read(text, folder)


def test_paths_and_constants_of_a_gunicorn_file() -> None:
    (site,) = read("gunicorn_site.conf.py").apps
    assert (site.table["target"], site.table["cwd"]) == ("site.wsgi:application", "./src")
    assert site.table["umask"] == "0007"
    assert {"secure_scheme_headers", "logconfig_dict"} <= {n.key for n in site.dropped}
    (other,) = read("gunicorn_conf.py").apps
    assert (other.table["interface"], other.table["workers"]) == ("asgi", "auto")
    assert other.table["env"]["PRICE"] == "5$$"
    assert {"bind", "target"} <= {n.key for n in other.review}


def test_paths_of_pathlib_and_of_folders_above_are_followed_in_a_gunicorn_file() -> None:
    text = "from pathlib import Path\nBASE = Path(__file__).resolve().parent.parent\nchdir = str(BASE / 'src')\n"
    (app,) = gunicornconf.read(text, "web", "/srv/shop/conf/gunicorn.conf.py").apps
    assert app.table["cwd"] == "/srv/shop/src"
    (app,) = gunicornconf.read("import os\nchdir = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))\n").apps
    assert app.table["cwd"] == "./.."
    (app,) = gunicornconf.read("chdir = 4 / 2\nuser = str(open('x').parent)\n").apps
    assert {n.key for n in app.review} == {"chdir", "user", "target"}


def test_a_path_beside_the_file_is_found_from_the_folder_that_the_server_changes_to() -> None:
    text = "import os\nbase = os.path.dirname(__file__)\nchdir = base + '/src'\ncertfile = base + '/c'\nkeyfile = base + '/k'\n"
    (app,) = gunicornconf.read(text).apps
    assert (app.table["cwd"], app.table["tls"]) == ("./src", {"cert": os.path.abspath("c"), "key": os.path.abspath("k")})
    (app,) = uwsgi.read("[uwsgi]\nchdir = %dsrc\nvenv = %dvenv\nmodule = a:b\n").apps
    assert (app.table["cwd"], app.table["python"]) == (os.path.abspath("src"), os.path.abspath("venv"))
    (app,) = uwsgi.read("[uwsgi]\nchdir = %d\nvenv = %dvenv\nmodule = a:b\n").apps
    assert app.table["python"] == "./venv"


def test_a_gunicorn_file_may_have_what_came_late_and_what_is_off_needs_no_look() -> None:
    text = "proxy_protocol = False\nroot_path = '/api'\nheader_map = 'drop'\ndirty_workers = 2\ndef on_dirty_starting(a): pass\n"
    (app,) = gunicornconf.read(text).apps
    assert app.table["http"] == {"root_path": "/api"}
    assert {n.key for n in app.review} == {"target"}
    assert {n.key for n in app.dropped} == {"header_map", "dirty_workers", "on_dirty_starting"}


@pytest.mark.parametrize("worker", ["asgi", "uvicorn.workers.UvicornWorker", "gunicorn.workers.gasgi.ASGIWorker"])
def test_a_worker_of_gunicorn_s_for_asgi_is_the_interface(worker: str) -> None:
    (app,) = gunicornconf.read(f"wsgi_app = 'shop:app'\nworker_class = '{worker}'\n").apps
    assert (app.table["interface"], app.review) == ("asgi", [])


def test_a_port_of_the_environment_beside_other_addresses_is_not_lost() -> None:
    both = 'import os\nbind = ["0.0.0.0:" + os.environ.get("PORT", "8055"), "unix:g.sock"]\nwsgi_app = "a:b"\n'
    (site,) = read("gunicorn.conf.py", text=both).apps
    assert site.table["bind"] == ["0.0.0.0:8055", "unix:g.sock"]
    assert "0.0.0.0:8055 is what it is without it" in next(n.reason for n in site.review if n.key == "bind")
    (site,) = read("gunicorn.conf.py", text=both.replace(', "8055")', ', "")')).apps
    assert "write it into bind" in next(n.reason for n in site.review if n.key == "bind")
    (site,) = read("gunicorn.conf.py", text=both.replace('"unix:g.sock"', "")).apps
    assert "bind" not in site.table
    assert "$PORT" in next(n.reason for n in site.review if n.key == "bind")


def test_variables_of_uwsgi() -> None:
    (web,) = read("container.uwsgi.ini").apps
    assert "bind" not in web.table
    assert "python" not in web.table
    assert web.table["env"] == {"SECRET": "a$$b"}
    assert {"home", "http", "processes", "threads", "if-env"} <= {n.key for n in web.review}
    (blog,) = read("blog.ini").apps
    assert (blog.name, blog.table["target"], blog.table["bind"]) == ("blog", "blog.wsgi:app", "unix:/run/uwsgi/blog.sock")


def test_every_server_of_a_procfile() -> None:
    result = read("Procfile.many")
    tables = {a.name: a.table for a in result.apps}
    assert tables["api"] == {"target": "app.main:app", "cwd": "api", "bind": "127.0.0.1:8001"}
    assert tables["waitress"] == {"target": "shop:create_app", "factory": True, "threads": 8, "bind": "0.0.0.0:8042"}
    assert tables["fast"] == {"target": "app.main:app", "bind": "0.0.0.0:8043", "workers": 2}
    assert tables["asgi"] == {"target": "config.asgi:application", "interface": "asgi"}
    assert tables["flask"]["env"] == {"FLASK_APP": "shop"}
    assert "gunicorn has processes of its own" in app(result, "web").review[0].reason


@pytest.mark.parametrize(
    ("line", "table"),
    [
        ("hypercorn -k uvloop -m 007 -w 2", {"loop": "uvloop", "umask": "007", "workers": 2}),
        ("hypercorn -D -u 33 --group 33 --no-http2", {}),
        ("waitress-serve --unix-socket=/run/x.sock --threads=1", {"threads": 1, "bind": "unix:/run/x.sock"}),
        ("waitress-serve --trusted-proxy 10.0.0.1 --clear-untrusted-proxy-headers", {
            "threads": 4, "bind": "0.0.0.0:8080", "http": {"forwarded_allow_ips": ["10.0.0.1"]},
        }),
        ("granian --ssl-certificate c.pem --ssl-keyfile k.pem", {"tls": {"cert": "c.pem", "key": "k.pem"}}),
        ("granian --working-dir api --no-log", {"cwd": "api"}),
        ("uvicorn --no-h11-upgrade", {}),
        ("gunicorn --certfile both.pem", {"tls": {"cert": "both.pem", "key": "both.pem"}}),
        ("gunicorn --keyfile k.pem --ca-certs c.pem", {}),
    ],
)  # fmt: skip
def test_an_option_of_a_server_has_its_meaning_and_takes_no_word_of_another(line: str, table: dict[str, object]) -> None:
    (app,) = procfile.read(f"web: {line} a:b\n").apps
    assert app.table == {"target": "a:b", **table}


def test_a_loop_of_hypercorn_s_that_is_not_here_is_said() -> None:
    (app,) = procfile.read("web: hypercorn -k trio a:b\n").apps
    assert [(n.key, n.reason) for n in app.review] == [("hypercorn worker_class", "loop trio is not known here")]


def test_a_config_file_of_hypercorn_s_is_looked_at_by_what_can_read_it() -> None:
    plain, python = procfile.read("a: hypercorn -c x.toml m:a\nb: hypercorn -c file:x.py m:b\n").apps
    assert plain.review[0].reason == "settings of x.toml, which is TOML, are not in this: write them"
    assert python.review[0].reason.endswith("pyworker import x.py --from gunicorn -o -")


def test_what_a_gunicorn_file_computes_anew_is_no_longer_what_it_was() -> None:
    text = "wsgi_app = 'a:b'\nport = 8000\nport = find()\nbind = f':{port}'\nworkers = 4\nworkers = find()\n"
    (app,) = gunicornconf.read(text).apps
    assert app.table == {"target": "a:b"}
    assert [note.key for note in app.review] == ["bind", "workers"]


def test_an_endpoint_of_daphne_s_is_not_left_out_without_a_step() -> None:
    """It may be the only one with TLS."""
    (app,) = procfile.read("web: daphne -e ssl:443:privateKey=k.pem:certKey=c.pem -e unix:/run/x.sock a:b\n").apps
    assert [n.key for n in app.review] == ["daphne endpoint"] * 2
    assert "ssl:443:privateKey=k.pem:certKey=c.pem: write it into bind" in app.review[0].reason


def test_the_tls_of_uwsgi_s_is_not_left_out_without_a_step() -> None:
    (app,) = uwsgi.read("[uwsgi]\nmodule = a\nhttps = :443,c.pem,k.pem\n").apps
    assert [n.key for n in app.review] == ["https"]


def test_what_gunicorn_s_file_sets_to_none_is_not_set() -> None:
    found = app(read("gunicorn.conf.py", text="user = None\nchdir = None\ncertfile = None\nproc_name = None\nwsgi_app = 'a.b:make()'"), "shop")
    assert found.table == {"target": "a.b:make", "factory": True}


def test_settings_that_come_from_another_module_are_named() -> None:
    found = app(read("gunicorn.conf.py", text="from base import *\nlogger_class = 'x.Y'"), "shop")
    assert "settings of base are not in this" in {n.reason for n in found.review}
    assert "logger_class" in {n.key for n in found.dropped}


def test_every_python_path_of_uwsgi_counts_and_0_is_off() -> None:
    text = "[uwsgi]\nmodule = shop\ncallable = make()\npythonpath = /a\npp = /b\npy-autoreload = 0\npyhome = /v\n"
    assert app(read("uwsgi.ini", text=text), "shop").table == {
        "target": "shop:make", "factory": True, "env": {"PYTHONPATH": "/a:/b"}, "python": "/v"
    }  # fmt: skip


def test_uwsgi_s_reload_of_python_has_four_names() -> None:
    for name in ("py-autoreload", "py-auto-reload", "python-autoreload", "python-auto-reload"):
        assert uwsgi.read(f"[uwsgi]\nmodule = shop\n{name} = 2\n").apps[0].table["watch"] is True


def test_a_factory_of_uwsgi_is_one_where_its_module_is_not_said_too() -> None:
    table = app(read("uwsgi.ini", text="[uwsgi]\ncallable = make()\n"), "shop").table
    assert table == {"target": "CHANGE.ME:make", "factory": True}


def test_what_supervisor_counts_by_process_is_named_and_its_noughts_are_not_lost() -> None:
    text = (
        "[program:web]\ncommand = env A=1 server 80%(process_num)02d\nnumprocs = 2\nenvironment = P=8%(process_num)d,Q=1\n"
        "startretries = 0\nstdout_logfile_backups = 0\nstdout_logfile_maxbytes = 1MB\nstderr_logfile_maxbytes = 9MB\n"
    )
    found = app(read("supervisord.conf", text=text), "web")
    assert found.table["env"] == {"A": "1", "Q": "1"}
    assert found.table["logs"] == {"max_files": 0, "max_size": "1MB"}
    words = " ".join(n.reason for n in found.review)
    assert "was %(process_num)02d, from 0 on" in words
    assert "P was another for each process" in words
    assert "no try after a start that failed" in words


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("gunicorn.conf.py", "wsgi_app = 'shop:app'"),
        ("uwsgi.ini", "[uwsgi]\nmodule = shop:app"),
        ("supervisord.conf", "[program:a]\ncommand = ./x"),
    ],
)
def test_that_the_environment_of_the_old_program_is_not_the_apps_is_said(file: str, text: str) -> None:
    assert "the environment" in {n.key for n in read(file, text=text).dropped}


def test_the_machines_own_python_is_kept_where_it_is_named_in_full() -> None:
    text = (
        "[program:a]\ncommand = /usr/bin/python3 a.py\n[program:b]\ncommand = python3 b.py\n"
        "[program:c]\ncommand = /usr/local/bin/gunicorn c:app\n"
    )
    result = read("supervisord.conf", text=text)
    assert app(result, "a").table["python"] == "/usr/bin/python3"
    assert all("python" not in app(result, name).table for name in "bc"), "whose shebang says which"


def test_what_the_file_sets_is_not_awaited_of_the_shell_and_the_command_has_the_last_word_as_ever() -> None:
    text = (
        "[supervisord]\nenvironment = DSN=db\n[program:a]\ncommand = sh -c 'exec ./x $DSN $MODE'\nenvironment = MODE=fast\n"
        "[program:b]\ncommand = env MODE=slow ./x\nenvironment = MODE=fast\n"
    )
    result = read("supervisord.conf", text=text)
    found = app(result, "a")
    assert "inherit_env" not in found.table
    assert [n.reason for n in found.review] == ["runs in a shell as before"]
    assert app(result, "b").table["env"]["MODE"] == "slow"


def test_a_line_of_a_procfile_means_the_same_to_the_shell_and_has_its_variables() -> None:
    result = read("Procfile", text="a: ./x --url $DB \"$TWO words\" '$5'\nb: for i in 1 2; do echo $i $TWO; done\n")
    assert app(result, "a").table == {
        "command": ["sh", "-c", "exec ./x --url $DB \"$TWO words\" '$5'"], "inherit_env": ["DB", "TWO"]
    }  # fmt: skip
    assert app(result, "b").table["inherit_env"] == ["TWO"]
    assert "the environment" in {n.key for n in result.dropped}


def test_arguments_of_an_interpreter_that_is_not_there_are_named() -> None:
    found = app(pm2.read({"apps": [{"script": "serve", "node_args": "--inspect"}]}), "serve")
    assert [n.key for n in found.review] == ["interpreter_args"]


def test_every_word_of_supervisor_s_for_yes_no_none_and_a_signal_is_understood() -> None:
    text = "[program:{}]\ncommand=x\nautostart={}\nautorestart={}\nstopsignal={}\nstdout_logfile={}\n"
    a, b = supervisor.read(text.format("a", "yes", "1", "15", "off") + text.format("b", "On", "NO", "KILL", "")).apps
    assert a.table == {"command": ["x"], "restart": {"policy": "always"}, "stop": {"signal": "TERM"}}
    assert b.table == {"command": ["x"], "restart": {"policy": "never"}}
    assert a.review == []
    assert [n.key for n in b.review] == ["stopsignal"]


def test_a_log_of_each_process_is_no_file_of_that_name_and_numprocs_is_a_number() -> None:
    text = "[program:a]\ncommand=x %(numprocs)d\nnumprocs=3\nstderr_logfile=e\nstdout_logfile=/l/%(process_num)02d.log\n"
    (found,) = supervisor.read(text).apps
    assert found.table["command"] == ["x", "3"]
    assert found.table["logs"] == {"file": "e"}
    assert [(n.key, n.reason) for n in found.dropped] == [("stdout_logfile", "all workers write to one log, each line marked")]
    (both,) = supervisor.read("[program:a]\ncommand=x\nstderr_logfile=e\nstdout_logfile=o\n").apps
    assert both.table["logs"] == {"file": "o"}


def test_a_folder_that_the_command_line_changes_to_is_seen_from_the_one_it_is_started_in() -> None:
    line = "venv/bin/gunicorn --chdir src a:b"
    (one,) = supervisor.read(f"[program:a]\ncommand={line}\ndirectory=/srv\n").apps
    (two,) = pm2.read({"apps": [{"script": line, "cwd": "/srv"}]}).apps
    (three,) = procfile.read(f"a: cd /srv && {line}\n").apps
    for found in (one, two, three):
        assert {k: found.table[k] for k in ("target", "cwd", "python")} == {
            "target": "a:b", "cwd": "/srv/src", "python": "../venv"
        }  # fmt: skip
    one, two = procfile.read("a: ~/v/bin/gunicorn --chdir src a:b\nb: cd x && gunicorn --chdir ~/src a:b\n").apps
    assert (one.table["cwd"], one.table["python"], two.table["cwd"]) == ("src", "~/v", "~/src")


def test_what_uv_run_runs_is_told_from_its_options() -> None:
    a, b, c = procfile.read("a: uv run --with x uvicorn m:a\nb: uv run main.py 1\nc: uv run uvicorn m:a\n").apps
    assert a.table == {"command": ["uv", "run", "--with", "x", "uvicorn", "m:a"]}
    assert b.table == {"script": "main.py", "args": ["1"]}
    assert c.table["target"] == "m:a"


def test_every_address_of_waitress_is_kept() -> None:
    (web,) = procfile.read("web: waitress-serve --listen=*:8080 --listen=[::1]:8081 a:b\n").apps
    assert web.table["bind"] == ["0.0.0.0:8080", "[::1]:8081"]


def test_pm2_knows_an_interpreter_by_the_ending_and_a_server_of_python_is_one_behind_python() -> None:
    apps = [
        {"script": "start.sh"},
        {"script": "node_modules/next/dist/bin/next", "args": "start", "exec_mode": "cluster", "instances": 2},
        {"script": "/v/bin/gunicorn", "args": "a:b -w 2", "interpreter": "/v/bin/python3", "watch_options": {}},
        {"script": "./a.sh", "interpreter": "none"},
        {"script": "cd x && ./a.sh"},
        {"script": "python app.py"},
        {"script": "a.rb", "error_file": "e.log", "out_file": "o.log", "windowsHide": True},
    ]
    shell, node, web, itself, line, python, ruby = pm2.read({"apps": apps}).apps
    assert itself.table == {"command": ["./a.sh"]}
    assert line.table == {"command": ["./a.sh"], "cwd": "x"}
    assert python.table == {"script": "app.py"}
    assert shell.table == {"command": ["bash", "start.sh"]}
    assert node.table["command"] == ["node", "node_modules/next/dist/bin/next", "start"]
    assert node.table["balance"] == "round-robin"
    assert web.table == {"target": "a:b", "python": "/v", "workers": 2}
    assert [n.key for n in web.dropped] == ["watch_options"]
    assert ruby.table == {"command": ["ruby", "a.rb"], "logs": {"file": "o.log"}}
    assert "Linux" in ruby.dropped[0].reason


def test_a_name_that_a_uwsgi_file_gives_itself_is_no_setting_and_what_nobody_knows_is_said() -> None:
    text = "[uwsgi]\nbase_dir = /srv\nchdir = %(base_dir)/%n%%\nmodule = m\nlogto = /l/%c.log\nworkers = %k\n"
    (web,) = uwsgi.read(text, "web", "/e", "shop").apps
    assert web.table == {"target": "m:application", "cwd": "/srv/shop%", "workers": "auto"}
    assert web.dropped == []
    assert [(n.key, n.reason) for n in web.review] == [("logto", "was /l/%c.log: write what that is")]


def test_a_server_that_is_left_a_command_and_its_number_of_workers_are_told() -> None:
    a, b = procfile.read("a: gunicorn -c x.py\nb: gunicorn -w ${WEB_CONCURRENCY:-4} a:b\n").apps
    assert a.table == {"command": ["gunicorn", "-c", "x.py"]}
    assert ["has processes of its own" in n.reason for n in a.review] == [True]
    assert b.table == {"target": "a:b"}
    assert "pyworker takes $WEB_CONCURRENCY" in b.review[0].reason


def test_what_pm2_takes_from_the_environment_is_its_default_or_said_to_be_missing() -> None:
    text = """module.exports = {apps: [
        {name: `${process.env.N || "bot"}-x`, script: "a.py", cwd: process.env.DIR, instances: process.env.W || 2,
         interpreter: process.env.HOME + "/v/bin/python", env: {A: process.env.A}, port: process.env.P || 3000,
         autorestart: process.env.R ?? false, uid: null},
        {name: "g", script: `${process.env.HOME}/v/bin/gunicorn`, args: "a:b --chdir $X"}]}"""
    bot, web = pm2.read(jsliteral.parse(text)).apps
    assert (bot.name, bot.table) == ("bot-x", {
        "script": "a.py", "python": "~/v", "workers": 2, "env": {"A": "${A}", "PORT": "${P:-3000}"},
        "restart": {"policy": "never"},
    })  # fmt: skip
    assert [(n.key, n.reason) for n in bot.review] == [
        ("name", "was ${N:-bot}-x: bot-x by default"),
        ("cwd", "was ${DIR}: write what that is"),
        ("instances", "was ${W:-2}: 2 by default"),
        ("autorestart", "was ${R:-false}: false by default"),
    ]
    assert web.table == {"target": "a:b", "python": "~/v"}
    assert [n.key for n in web.review] == ["gunicorn chdir"]


def test_a_dollar_of_pm2_s_is_a_sign_beside_what_comes_from_the_environment() -> None:
    text = """module.exports = {apps: [
        {script: "a.sh", args: ["$HOME/x", process.env.KEY]}, {script: "b.py", args: "--price $US"}]}"""
    shell, python = pm2.read(jsliteral.parse(text)).apps
    assert shell.table == {"command": ["sh", "-c", "exec bash a.sh '$HOME/x' ${KEY}"], "inherit_env": ["KEY"]}
    assert python.table == {"script": "b.py", "args": ["--price", "$US"]}
    text = """module.exports = {apps: [{script: "bash", args: ["-c", "a $B"], interpreter: "none"}, {
        script: "gunicorn", args: ["m:app", "--env", "A=$HOME", "--env", `B=${process.env.B}`], interpreter: "none"}]}"""
    shell, web = pm2.read(jsliteral.parse(text)).apps
    assert (shell.table["command"], shell.table["inherit_env"]) == (["bash", "-c", "a $B"], ["B"]), "here it is the shell's"
    assert web.table["env"] == {"A": "$$HOME", "B": "${B}"}
    text = 'module.exports = {apps: [{script: "$V/bin/gunicorn", args: "m:app"}, {script: "prog", args: "uwsgi $X.ini"}]}'
    web, other = pm2.read(jsliteral.parse(text.replace("script:", 'interpreter: "none", script:'))).apps
    assert "python" not in web.table
    assert any("pyworker import '$X.ini'" in note.reason for note in other.review)


def test_a_program_behind_bash_and_a_mode_that_is_computed_are_seen() -> None:
    text = """module.exports = {apps: [
        {script: "poetry", args: "run python x.py", interpreter: "/bin/bash"},
        {script: "s.js", exec_mode: isProd() ? "cluster" : "fork"}]}"""
    poetry, node = pm2.read(jsliteral.parse(text)).apps
    assert poetry.table == {"script": "x.py"}
    assert [n.key for n in node.review] == ["exec_mode"]


def test_an_option_that_nobody_knows_does_not_take_the_next_one_for_its_value() -> None:
    line = "uvicorn --factory a:b --unheard-of --port 9 --reload --reload-dir x --reload-include *.html --reset-contextvars"
    (web,) = procfile.read(f"web: {line}\n").apps
    assert web.table["bind"] == "127.0.0.1:9"
    assert web.table["watch"] == {"paths": ["x"], "include": ["*.py", "*.html"]}
    assert {"uvicorn unheard_of", "uvicorn reset_contextvars"} <= {n.key for n in web.dropped}


def test_a_program_of_supervisor_s_keeps_its_name_and_a_module_that_is_gunicorn_s_config_is_named_as_a_file() -> None:
    text = "[program:web]\ncommand=gunicorn -n shop -c python:shop.gconf --strip-header-spaces shop.wsgi\n"
    (web,) = supervisor.read(text).apps
    assert (web.name, web.table["target"]) == ("web", "shop.wsgi:application")
    assert next(n.reason for n in web.review if "gconf" in n.reason).endswith("pyworker import shop/gconf.py --from gunicorn -o -")
    (own,) = supervisor.read("[program:web]\ncommand=uwsgi --http :80 --module shop\n").apps
    assert "uwsgi has processes of its own" in own.review[0].reason
    (own,) = supervisor.read("[program:web]\ncommand=uwsgi --ini=/etc/shop.ini\n").apps
    assert "pyworker import /etc/shop.ini -o -" in own.review[0].reason
    for line in ("gunicorn --paste shop.ini", "uwsgi --ini-paste shop.ini"):
        (own,) = supervisor.read(f"[program:web]\ncommand={line}\n").apps
        assert "pyworker import" not in own.review[0].reason


def test_a_port_that_is_made_up_is_no_other_app_s() -> None:
    result = procfile.read("a: uvicorn m:a\nb: uvicorn m:b\nc: uvicorn m:c --port 8001\nd: uvicorn m:d\n")
    assert [a.table.get("bind") for a in result.apps] == [None, "127.0.0.1:8002", "127.0.0.1:8001", "127.0.0.1:8003"]
    result = procfile.read("a: uvicorn m:a\nb: uvicorn m:b --port 8000\n")
    assert [a.table["bind"] for a in result.apps] == ["127.0.0.1:8001", "127.0.0.1:8000"]
    result = procfile.read("a: uvicorn m:a --port $PORT\nb: uvicorn m:b --port 8000\n")
    assert "bind" not in result.apps[0].table


def test_the_folder_of_a_pm2_file_is_seen_from_that_of_each_app() -> None:
    text = """const path = require("path"), root = __dirname; module.exports = {apps: [
        {name: "a", script: path.join(root, "venv/bin/uvicorn"), args: "m:a", cwd: path.join(root, "api"), out_file: `${root}/a.log`},
        {name: "b", script: "b.py", cwd: path.resolve(root, ".."), env: {PYTHONPATH: root}},
        {name: "c", script: path.join(root, "c.py"), cwd: "/srv"},
        {name: "d", script: root + "/d.py"}]}"""
    value = jsliteral.parse(text)
    here = os.path.basename(os.getcwd())
    a, b, c, d = (app.table for app in pm2.read(value).apps)
    assert a == {"target": "m:a", "python": "../venv", "cwd": "api", "logs": {"file": "../a.log"}}
    assert b == {"script": "b.py", "cwd": "..", "env": {"PYTHONPATH": here}}
    assert c == {"script": f"{os.getcwd()}/c.py", "cwd": "/srv"}
    assert d == {"script": "d.py"}
    a, b, *_ = (app.table for app in pm2.read(value, folder="/opt/x").apps)
    assert (a["python"], a["cwd"], b["cwd"], b["env"]["PYTHONPATH"]) == ("/opt/x/venv", "/opt/x/api", "/opt", "/opt/x")


def test_apps_that_only_running_a_pm2_file_tells_are_named_and_the_others_are_read() -> None:
    text = "module.exports = {apps: [{script: 'a.py'}, f(1),\n ...more, {script: g()}, ...(x ? [] : [])]}"
    result = pm2.read(jsliteral.parse(text))
    assert [app.table for app in result.apps] == [{"script": "a.py"}]
    assert [(n.key, n.reason.partition(":")[0]) for n in result.dropped] == [
        ("line 1", "f(1)"), ("line 2", "more"), ("line 2", "g()"), ("line 2", "(x ? [] ")
    ]  # fmt: skip
    assert "pyworker import --run" in result.dropped[0].reason


def test_what_a_pm2_file_says_in_rarer_ways_is_read() -> None:
    text = """module.exports = {apps: {script: "a.py", args: [__dirname + "/x.ini"], env: {A: {b: [1]}},
        env_preProd: {B: 1, C: f()}}}"""
    (app,) = pm2.read(jsliteral.parse(text)).apps
    assert app.table == {"script": "a.py", "args": ["x.ini"], "env": {"A": '{"b": [1]}'}}
    assert app.profiles == {"preprod": {"env": {"B": "1"}}}
    assert "env.C" in {note.key for note in app.review}


def test_processes_of_a_pm2_dump_are_the_workers_of_one_app() -> None:
    (app,) = pm2.read([{"name": "a", "pm_exec_path": "/srv/a.py", "instances": 3, "env": {}}] * 3).apps
    assert app.table["workers"] == 3


def test_apps_of_one_name_or_without_an_address_are_told_apart_whatever_the_file() -> None:
    files = [
        pm2.read({"apps": [{"name": "a", "script": "uvicorn", "args": "m:a"}] * 2}),
        supervisor.read("[program:a]\ncommand=uvicorn m:a\n[fcgi-program:a]\ncommand=uvicorn m:a\n"),
        procfile.read("a: uvicorn m:a\na: uvicorn m:a\n"),
    ]
    for result in files:
        assert [(app.name, app.table.get("bind")) for app in result.apps] == [("a", None), ("a-2", "127.0.0.1:8001")]


def test_a_program_of_pm2_that_is_no_file_is_no_argument_of_its_interpreter() -> None:
    apps = [
        {"script": "celery", "args": "-A shop worker", "interpreter": "/srv/venv/bin/python"},
        {"script": "celery", "interpreter": "/usr/bin/python3"},
        {"script": "npm", "args": "start", "interpreter": "node"},
        {"script": "-m", "args": "bot", "interpreter": "v/bin/python"},
    ]
    commands = [app.table["command"] for app in pm2.read({"apps": apps}).apps]
    assert commands == [["/srv/venv/bin/celery", "-A", "shop", "worker"], ["celery"], ["npm", "start"], ["v/bin/python", "-m", "bot"]]


def test_a_script_without_an_ending_is_no_program_where_its_file_is_there(tmp_path: Path) -> None:
    (tmp_path / "serve").touch()
    (app,) = pm2.read({"apps": [{"script": "serve", "interpreter": "python3", "cwd": str(tmp_path)}]}).apps
    assert app.table["command"] == ["python3", "serve"]


def test_an_env_file_of_a_pm2_file_is_read_here_and_is_no_profile() -> None:
    (app,) = pm2.read({"apps": [{"script": "a.py", "env_file": "../.env"}]}).apps
    assert (app.table["env_file"], app.profiles) == ("../.env?", {})
    assert [n.key for n in app.review] == ["env_file"]


def test_what_pm2_does_not_insist_on_is_no_condition_of_a_start_here() -> None:
    settings = {"wait_ready": True, "listen_timeout": 3000}
    python, node = pm2.read({"apps": [{"script": "a.sh", **settings}, {"script": "b.js", **settings, "listen_timeout": 90000}]}).apps
    assert python.table == {"command": ["bash", "a.sh"]}
    assert [n.key for n in python.dropped] == ["wait_ready", "listen_timeout"]
    assert node.table == {"command": ["node", "b.js"], "ready": "notify", "reload": {"ready_timeout": "90s"}}
    assert "here the start fails" in node.review[0].reason


def test_a_line_that_prepares_a_server_is_that_server_with_what_was_prepared() -> None:
    lines = [
        "source venv/bin/activate && cd api && gunicorn a:b",
        "cd api && . ../v/bin/activate && python -m bot",
        "export A=1 B=$X && uvicorn a:b # one day two",
        "python manage.py migrate && flask db upgrade && gunicorn a:b",
        "cd api && alembic upgrade head && uvicorn a:b",
        "rm -f *.pid && ./warm $HOW && uvicorn a:b",
    ]
    apps = procfile.read("".join(f"a{n}: {line}\n" for n, line in enumerate(lines))).apps
    for app in apps:
        app.table.pop("bind", None)
    assert [app.table for app in apps] == [
        {"target": "a:b", "cwd": "api", "python": "../venv"},
        {"command": ["python", "-m", "bot"], "cwd": "api", "python": "../v"},
        {"target": "a:b", "env": {"A": "1", "B": "${X:-}"}},
        {"target": "a:b", "hooks": {"pre_start": ["sh", "-c", "python manage.py migrate && flask db upgrade"]}},
        {"target": "a:b", "cwd": "api", "hooks": {"pre_start": "alembic upgrade head"}},
        {"target": "a:b", "hooks": {"pre_start": ["sh", "-c", "rm -f *.pid && ./warm $HOW"]}, "inherit_env": ["HOW"]},
    ]
    assert any("hooks.pre_start" in n.reason for n in apps[3].review)


def test_a_line_that_a_shell_alone_understands_stays_in_one() -> None:
    lines = [
        "source activate x && python -m bot",
        "workon x && gunicorn a:b",
        "cd a && npm i && cd ../b && gunicorn a:b",
        "A=1 && gunicorn a:b",
        "flask db upgrade && celery -A x worker",
        "flask db upgrade && gunicorn --chdir web a:b",
        "echo 'a && b' && gunicorn a:b",
        "source v/bin/activate && cd /srv && python -m bot",
    ]
    for line in lines:
        for app in procfile.read(f"a: {line}\nb: bash -c {shlex.quote(line)}\n").apps:
            assert app.table["command"][-2:] == ["-c", line]


def test_a_server_in_a_shell_that_it_does_not_need_is_the_apps_own() -> None:
    text = "[program:a]\ncommand=/bin/bash -c \"source /v/bin/activate && exec gunicorn a:b -b :$PORT\"\n[program:b]\ncommand=sh -c 'ls *.py'\n"
    a, b = supervisor.read(text).apps
    assert {k: v for k, v in a.table.items() if k != "restart"} == {"target": "a:b", "python": "/v"}
    assert b.table["command"] == ["sh", "-c", "ls *.py"]
    (c,) = pm2.read({"apps": [{"script": "bash", "args": "app:app", "interpreter": "bash", "interpreter_args": "-c 'uvicorn x:y'"}]}).apps
    assert c.table == {"target": "x:y"}


def test_a_login_shell_that_is_left_out_is_said_with_what_it_may_have_set() -> None:
    (app,) = procfile.read('web: bash -lc "gunicorn a:b"\n').apps
    assert app.table == {"target": "a:b"}
    assert [n.reason for n in app.review] == [
        "bash -l is left out: what ~/.profile sets, such as a longer PATH, is to be said in env"
    ]


def test_a_line_of_a_procfile_that_is_no_process_is_passed_over_and_named() -> None:
    result = procfile.read("web: gunicorn a:b\npython manage.py migrate\nheroku ps:scale web=1\n")
    assert [app.name for app in result.apps] == ["web"]
    assert [n.key for n in result.dropped][:2] == ["line 2", "line 3"]


def test_a_gunicorn_file_may_give_one_value_to_several_settings() -> None:
    (app,) = gunicornconf.read('wsgi_app = "a:b"\naccesslog = errorlog = "-"\n', "shop").apps
    assert app.table == {"target": "a:b", "http": {"access_log": "text"}}
    assert [n.key for n in app.dropped] == ["errorlog"]


def test_a_path_that_begins_with_the_home_of_its_owner_still_does() -> None:
    text = "[program:a]\ncommand=%(ENV_HOME)s/v/bin/gunicorn a:b\ndirectory=%(ENV_HOME)s/site\nstdout_logfile=%(ENV_HOME)s/a.log\n"
    (a,) = supervisor.read(text).apps
    (b,) = procfile.read("b: $HOME/v/bin/gunicorn --chdir ${HOME}/site a:b\n").apps
    (c,) = uwsgi.read("[uwsgi]\nchdir = $(HOME)/site\nvenv = $(HOME)/v\nmodule = a:b\n").apps
    (d,) = pm2.read(jsliteral.parse("module.exports = {script: 'v/bin/uvicorn', args: 'a:b', cwd: process.env.HOME + '/site'}")).apps
    assert [app.table["cwd"] for app in (a, b, c, d)] == ["~/site"] * 4
    assert [app.table["python"] for app in (a, b, c, d)] == ["~/v"] * 3 + ["v"]
    assert a.table["logs"] == {"file": "~/a.log"}
    (e,) = supervisor.read("[program:e]\ncommand=x\ndirectory=%(ENV_HOMES)s/x\n").apps
    assert "cwd" not in e.table


def test_watch_of_a_pm2_file_may_be_a_word() -> None:
    on, off = pm2.read({"apps": [{"script": "a.py", "watch": "true"}, {"script": "b.py", "watch": "false"}]}).apps
    assert (on.table["watch"], "watch" in off.table) == (True, False)


@pytest.mark.parametrize(
    ("value", "bind"),
    [
        ('"%s:%d" % (host, 9000)', "127.0.0.1:9000"),
        ('":%s" % os.getenv("WEB_PORT", 9000)', ":9000"),
        ('"{}:{}".format(host, 9000)', "127.0.0.1:9000"),
        ('"{1}:{port}".format(1, host, port=9000)', "127.0.0.1:9000"),
        ('"{:>9}".format(host)', None),
        ('"%05d%%" % 1', None),
        ('"127.0.0.1:%d" % os.cpu_count()', None),
        ('"{} {}".format(host)', None),
    ],
)
def test_an_address_of_a_gunicorn_file_may_be_put_together(value: str, bind: str | None) -> None:
    (app,) = gunicornconf.read(f'import os\nhost = "127.0.0.1"\nbind = {value}\n', "shop").apps
    assert app.table.get("bind") == bind
    assert ("bind" in {n.key for n in app.review}) == (bind in (None, ":9000"))


def test_a_file_of_supervisor_s_is_parsed_as_supervisord_parses_it() -> None:
    text = "[program:a]\ncommand=a # one\nUser = x ; two\n[program:a]\nuser=y\n"
    (app,) = supervisor.read(text).apps
    assert (app.table["command"], app.table["user"], app.dropped) == (["a"], "y", [])
    assert supervisor.included("[include]\nFiles = %(here)s/*.ini\n", "/etc") == ["/etc/*.ini"]


def test_a_unit_of_systemd() -> None:
    (shop,) = read("shop.service").apps
    assert shop.name == "shop"
    assert shop.table == {
        "target": "shop.wsgi:application",
        "python": "/srv/shop/venv",
        "cwd": "/srv/shop",
        "workers": 3,
        "bind": "unix:/run/shop.sock",
        "user": "shop",
        "group": "www-data",
        "env": {"DJANGO_SETTINGS_MODULE": "shop.settings", "WORKERS": "3", "MOTTO": "100% or $$5"},
        "env_file": ["/etc/default/shop?"],
        "hooks": {"pre_start": "/srv/shop/venv/bin/python manage.py migrate"},
        "http": {"access_log": "text"},
        "stop": {"kill_timeout": "65s"},
        "limits": {"nofile": 65536},
    }
    assert [note.key for note in shop.review] == ["RuntimeDirectory", "ExecStartPre", "EnvironmentFile"]
    assert [note.key for note in shop.dropped] == ["ExecReload", "KillMode", "RestartSec", "NotifyAccess, PrivateTmp"]


def test_a_unit_of_systemd_with_all_that_a_command_line_may_have_there() -> None:
    (mail,) = read("mail@.service").apps
    assert mail.name == "mail"
    assert mail.table == {
        "command": ["sh", "-c", "exec /usr/bin/mail --queue %i --to $TO"],
        "cwd": "~",
        "inherit_env": ["TO"],
        "hooks": {"pre_start": ["/bin/sh", "-c", "mkdir -p /tmp/mail && true"]},
        "restart": {"policy": "always"},
        "stop": {"signal": "INT"},
    }
    assert {note.key for note in mail.review} >= {"Type", "WorkingDirectory", "TimeoutStartSec", "ExecStartPre", "%"}


@pytest.mark.parametrize("text", ["[Service]\nUser=x\n", "[Unit]\nExecStart=/bin/true\n"])
def test_a_unit_that_starts_nothing_is_refused_in_words(text: str) -> None:
    with pytest.raises(CannotImport, match="no ExecStart= in it"):
        systemd.read(text, "x")


def test_a_command_of_a_unit_ends_as_it_did_and_a_server_s_workers_are_replaced_as_they_were() -> None:
    start = "[Service]\nExecStart=/usr/bin/"
    assert systemd.read(f"{start}mail\n", "x").apps[0].table["restart"] == {"policy": "never"}
    assert "restart" not in systemd.read(f"{start}gunicorn a:b\n", "x").apps[0].table


@pytest.mark.parametrize(
    ("line", "hook"),
    [
        ("/bin/mkdir -p /run/x", "/bin/mkdir -p /run/x"),
        ("-/bin/rm -f '/run/x y'", ["sh", "-c", "/bin/rm -f '/run/x y' || true"]),
        ("/bin/mkdir -p ${DIR} 'a;b'", ["sh", "-c", "/bin/mkdir -p ${DIR} 'a;b'"]),
        (":/bin/echo $DIR", ["/bin/echo", "$DIR"]),
        ("/bin/echo $$DIR", ["/bin/echo", "$DIR"]),
        ("-/bin/echo $$DIR", ["sh", "-c", "/bin/echo '$DIR' || true"]),
        ("@/bin/mkdir mk /run/x", "/bin/mkdir /run/x"),
        ("-/bin/sh -c 'for f in a b; do echo $$f; done'", ["sh", "-c", "/bin/sh -c 'for f in a b; do echo $f; done' || true"]),
        ("/bin/sh -c 'echo $$(id -u)'", ["/bin/sh", "-c", "echo $(id -u)"]),
        ("/bin/echo $$A $B", ["sh", "-c", "/bin/echo '$A' $B"]),
    ],
)
def test_what_a_unit_runs_before_its_start_fails_and_finds_its_variables_as_it_did(line: str, hook: str | list[str]) -> None:
    (app,) = systemd.read(f"[Service]\nExecStart=/bin/mail\nExecStartPre={line}\n", "mail").apps
    assert app.table["hooks"] == {"pre_start": hook}


@pytest.mark.parametrize(
    ("lines", "table"),
    [
        (" Environment = A=1 B \n  User = x  ", {"env": {"A": "1"}, "user": "x"}),
        ("Environment=A=1\nEnvironment=\nEnvironment=B=2\nUser=x\nUser=", {"env": {"B": "2"}}),
        ("ExecStart=\nExecStart=:/bin/post $A\nEnvironment=A=1", {"env": {"A": "1"}, "command": ["/bin/post", "$A"]}),
        ("ExecStart=\nExecStart=/bin/post $$A $B\nEnvironment=A=1 B=2", {"env": {"A": "1", "B": "2"}, "command": ["/bin/post", "$A", "2"]}),
        ("ExecStart=\nExecStart=/bin/sh -c 'X=$$(id -u) exec post $X $A'\nEnvironment=A=1", {
            "env": {"A": "1"}, "command": ["/bin/sh", "-c", "X=$(id -u) exec post $X 1"],
        }),
        ("ExecStart=\nExecStart=/bin/post $$A $$$B", {
            "command": ["sh", "-c", "exec /bin/post '$A' \"\\$$B\""], "inherit_env": ["B"],
        }),
        ("ExecStart=\nExecStart=/bin/env A=$$x P=$PW /bin/post $PW $B\nEnvironment='PW=a$b'", {
            "env": {"PW": "a$$b", "A": "$$x", "P": "a$$b"},
            "command": ["sh", "-c", "exec /bin/post 'a$b' $B"], "inherit_env": ["B"],
        }),
        ("ExecStart=\nExecStart=/bin/env A=a$$x /bin/post", {"env": {"A": "a$$x"}, "command": ["/bin/post"]}),
        ("WorkingDirectory=-/srv", {"cwd": "/srv"}),
        ("Type=notify-reload", {"ready": "notify"}),
        ("KillSignal=2\nLimitNOFILE=4096:infinity", {"stop": {"signal": "INT"}}),
        ("EnvironmentFile=/a\nEnvironmentFile=-/b", {"env_file": ["/a", "/b?"]}),
        ("StandardOutput=null\nStandardError=truncate:/x", {"logs": {"file": "/x"}}),
        ("TimeoutStopSec=500ms\nTimeoutStartSec=2h", {"stop": {"kill_timeout": "500ms"}, "reload": {"ready_timeout": "7200s"}}),
        ("CPUQuota=20%", {}),
    ],
)  # fmt: skip
def test_a_setting_of_a_unit_is_read_as_systemd_reads_it(lines: str, table: dict[str, object]) -> None:
    (app,) = systemd.read(f"[Service]\nRestart=no\nExecStart=/bin/mail\n{lines}\n", "mail").apps
    plain = {"command": ["/bin/mail"], "cwd": "/", "restart": {"policy": "never"}}
    assert app.table == plain | table
    assert {note.key for note in app.review} <= {"LimitNOFILE", "ExecStart"}


@pytest.mark.parametrize(
    ("lines", "key", "said"),
    [
        ("ExecStart=/bin/b\nType=simple", "ExecStart", "python3 /bin/a.py runs before it"),
        ("ExecStart=\nExecStart=+/bin/b", "ExecStart", "ran with root's rights"),
        ("ExecStart=\nExecStart=/bin/b 'c", "ExecStart", "could not be split"),
        ("Type=oneshot", "Type", "a job that ends"),
        ("Type=notify", "Type", "READY=1 of a script is not waited for"),
        ("Restart=on-success", "Restart", "on-success: set restart.policy"),
        ("KillSignal=SIGKILL", "KillSignal", "no program can act on KILL"),
        ("KillSignal=SIGRTMIN+3", "KillSignal", "stop.signal takes one that has a name"),
        ("KillSignal=37", "KillSignal", "stop.signal takes one that has a name"),
        ("LimitNOFILE=infinity", "LimitNOFILE", "infinity: set limits.nofile"),
        ("TimeoutStopSec=1h or so", "TimeoutStopSec", "is no time that ends"),
        ("StandardOutput=file:/x\nStandardError=file:/y", "StandardError", "one log for both streams: /x, not also /y"),
        ("ExecStartPre=/bin/b\nExecStartPre=/bin/c", "ExecStartPre", "/bin/c runs then, too"),
        ("Environment=A=%i", "%", "systemd puts something in the place"),
        ("EnvironmentFile=/etc/x\nExecStart=+/bin/b $X", "ExecStart", "ran with root's rights"),
    ],
)
def test_what_a_unit_says_that_is_not_the_same_here_is_said(lines: str, key: str, said: str) -> None:
    (app,) = systemd.read(f"[Service]\nExecStart=python3 /bin/a.py\n{lines}\n", "mail").apps
    assert any(note.key == key and said in note.reason for note in app.review)


def test_what_ran_with_root_s_rights_before_a_unit_s_start_is_said() -> None:
    (app,) = systemd.read("[Service]\nUser=x\nExecStart=/bin/mail\nExecStartPre=+/bin/chown x /run/x\n", "mail").apps
    assert app.review[-1].reason == "/bin/chown x /run/x ran with root's rights; a hook has those of user"


def test_settings_of_a_unit_that_have_another_name_here_are_not_said_to_be_nothing() -> None:
    (app,) = systemd.read(
        "[Service]\nExecStart=/bin/mail --to ${TO}\nEnvironmentFile=/etc/mail\nPassEnvironment=A B\nPassEnvironment=C\n"
        "TimeoutSec=1min30s\nRuntimeMaxSec=2d 1h\nStandardOutput=append:/var/log/mail\nStandardError=append:/var/log/mail\n"
        "MemoryMax=1G\nMemoryHigh=infinity\nRestart=always\nWorkingDirectory=/srv\n", "mail",
    ).apps  # fmt: skip
    assert app.table == {
        "command": ["sh", "-c", "exec /bin/mail --to ${TO}"],
        "cwd": "/srv",
        "env_file": ["/etc/mail"],
        "inherit_env": ["A", "B", "C"],
        "reload": {"ready_timeout": "90s"},
        "stop": {"kill_timeout": "90s"},
        "limits": {"max_age": "176400s"},
        "logs": {"file": "/var/log/mail"},
        "restart": {"policy": "always"},
    }
    assert app.dropped == []
    assert [note.key for note in app.review] == ["ExecStart", "MemoryMax"]


def test_a_limit_of_a_unit_that_is_none_needs_none_here() -> None:
    unit = "[Service]\nExecStart=/bin/mail\nRuntimeMaxSec=infinity\nMemoryMax=infinity\nTimeoutStopSec=infinity\n"
    (app,) = systemd.read(unit, "mail").apps
    assert [note.key for note in app.review] == ["TimeoutStopSec"]  # there an end is waited for for ever, here never
    assert "limits" not in app.table


def test_a_server_of_the_machine_s_own_runs_by_the_machine_s_own_python() -> None:
    (web,) = procfile.read("web: /usr/bin/gunicorn a:b\n").apps
    assert web.table["python"] == "/usr/bin/python3"


def test_the_address_of_a_server_that_has_its_socket_from_systemd_is_asked_for() -> None:
    (web,) = systemd.read("[Unit]\nRequires=web.socket\n[Service]\nExecStart=/usr/bin/gunicorn a:b\n", "web").apps
    assert [(note.key, note.reason) for note in web.review] == [("bind", "write what ListenStream= of web.socket says")]


def test_one_file_for_both_streams_of_a_pm2_file_needs_no_look() -> None:
    (app,) = pm2.read({"script": "a.py", "out_file": "all.log", "error_file": "all.log"}).apps
    assert app.table["logs"] == {"file": "all.log"}
    assert app.review == []


def test_a_variable_among_the_arguments_of_a_node_program_of_pm2_is_looked_up() -> None:
    def command(text: str) -> Any:
        (app,) = pm2.read(jsliteral.parse(f"module.exports = {text}")).apps
        assert not any("left out" in note.reason for note in app.review)
        return app.table["command"], app.table.get("inherit_env")

    port = "process.env.API_PORT || 3000"
    filled_in = ["sh", "-c", "exec node --trace server.js --port ${API_PORT:-3000}"]
    assert command(f"{{script: 'server.js', node_args: '--trace', args: `--port ${{{port}}}`}}") == (filled_in, ["API_PORT"])
    assert command(f"{{script: 'server.js', interpreter: 'node', node_args: ['--trace'], args: ['--port', {port}]}}")[0] == filled_in
    assert command("{script: 'server.js', args: '--price $5'}") == (["node", "server.js", "--price", "$5"], None)
    beside = command("{script: 'server.js', args: [process.env.KEY, '$(id)', '$5']}")[0]
    assert beside == ["sh", "-c", "exec node server.js ${KEY} '$(id)' '$5'"], "no command of a file is executed that it does not execute"
    assert command("{script: './serve', interpreter: 'sh', interpreter_args: '-c'}")[0] == ["sh", "-c", "./serve"]


def test_a_variable_that_says_the_port_of_node_programs_is_its_default_where_they_share_it() -> None:
    text = "{script: 'server.js', instances: 4, args: ['-p', process.env.P || 3001, '$5'], env: {PORT: process.env.PORT || 3002}}"
    (app,) = pm2.read(jsliteral.parse(f"module.exports = {text}")).apps
    assert (app.table["command"], app.table["bind"]) == (["node", "server.js", "-p", "3001", "$5"], ":3001")
    assert "at their defaults" in app.review[0].reason
    (app,) = pm2.read(jsliteral.parse(f"module.exports = {text.replace('-p', '-q')}")).apps
    assert (app.table["bind"], "made up" in str(app.review)) == (":3002", False)


def test_a_size_has_the_largest_unit_of_which_it_is_a_whole_number() -> None:
    (of_uwsgi,) = uwsgi.read("[uwsgi]\nmodule = a\nbuffer-size = 32768\nreload-on-rss = 2048\n").apps
    assert (of_uwsgi.table["http"], of_uwsgi.table["limits"]) == ({"max_header_size": "32KB"}, {"memory": "2GB"})
    (of_pm2,) = pm2.read({"script": "a.py", "max_memory_restart": "1G"}).apps
    assert of_pm2.table["limits"] == {"memory": "1GB"}
