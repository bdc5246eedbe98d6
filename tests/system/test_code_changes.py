"""The files of pyworker change on disk while it runs, and one of its processes dies: what runs is never lost."""

from __future__ import annotations

import json
import os
import signal
import socket

from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, alive, kill
from tests.support.sources import ASGI
from tests.support.versions import install, set_version
from tests.support.wait import wait_until


def append(copy: str, file: str, text: str) -> str:
    """Put a line at the end of a file of the package; return what the file was."""
    path = os.path.join(copy, file)
    with open(path) as source:
        before = source.read()
    put(copy, file, before + text + "\n")
    return before


def put(copy: str, file: str, text: str) -> None:
    """Replace a file as an installer does."""
    path = os.path.join(copy, file)
    with open(path + ".new", "w") as source:
        source.write(text)
    os.replace(path + ".new", path)


def told(pw: Pyworker) -> str:
    """What pyworker's own log says."""
    with open(os.path.join(pw.home, "logs", "pyworker.log")) as file:
        return file.read()


def test_new_daemon_under_an_old_guardian_takes_over_what_runs(pw: Pyworker) -> None:
    copy = install(pw)
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids, guardian, daemon = pw.pids(), pw.role("guardian"), pw.role("daemon")
    with Load(pw.port, "new", "keep") as load:
        load.wait_more(20)
        set_version(copy, "0.9.7")
        append(copy, "protocol/inherited.py", 'KINDS["novel"] = 0')
        append(
            copy, "daemon/adopt.py",
            "_adopt = adopt\n"
            "def adopt(brain, wanted, **more):\n"
            "    print('found', 'novel.api' in brain.store.fds, file=__import__('sys').stderr, flush=True)\n"
            "    brain.store.put('novel.api', os.open('/dev/null', os.O_RDONLY))\n"
            "    return _adopt(brain, wanted, **more)",
        )  # fmt: skip
        kill(daemon)
        wait_until(lambda: pw.status().get("version") == "0.9.7", LONG, "the new daemon")
        assert pw.pids() == pids
        assert pw.role("guardian") == guardian
        kill(pw.role("daemon"))
        wait_until(lambda: "found True" in told(pw), LONG, "what the new daemon had stored")
        pw.wait_steady()
        assert pw.pids() == pids
        load.wait_more(20)
        pw.ok("reload", "api")
    assert load.lost == []


def test_app_that_other_code_does_not_understand_is_started_again_on_its_open_port(pw: Pyworker) -> None:
    copy = install(pw)
    pw.api(ASGI)
    pw.ok("start", "app.toml", "-e", "WORD=kept")
    pids, template = pw.pids(), pw.role("template")
    with Load(pw.port, "new") as load:
        load.wait_more(20)
        append(copy, "daemon/handles.py", "WorkerHandle.recall = lambda self, memo: memo['soul']")
        kill(pw.role("daemon"))
        app = pw.wait_steady()
        assert app["state"] == "running"
        wait_until(lambda: not any(alive(pid) for pid in (*pids, template)), LONG, "the old processes to leave")
        load.wait_more(20)
        found = json.loads(pw.ok("describe", "api", "--json").stdout)["apps"][0]
        assert any("could not be taken over" in note and "soul" in note for note in found["notes"])
        assert "WORD" in json.dumps(found)
    assert load.lost == []
    assert "soul" in told(pw)


def test_app_that_other_code_does_not_understand_keeps_a_unix_socket_and_the_port_of_a_name(pw: Pyworker) -> None:
    copy = install(pw)
    path = os.path.join(pw.folder, "api.sock")
    pw.write("web.py", ASGI)
    pw.write("app.toml", f'[app]\nname = "api"\ntarget = "web:app"\nbind = ["unix:{path}", "localhost:{pw.port}"]\n')
    pw.ok("start", "app.toml")
    inode = os.stat(path).st_ino
    append(copy, "daemon/handles.py", "WorkerHandle.recall = lambda self, memo: memo['soul']")
    kill(pw.role("daemon"))
    app = pw.wait_steady()
    assert app["state"] == "running", app
    assert os.stat(path).st_ino == inode
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    assert pw.get()


def test_script_that_other_code_does_not_understand_gets_the_unix_socket_that_it_asks_for(pw: Pyworker) -> None:
    copy = install(pw)
    path = os.path.join(pw.folder, "own.sock")
    pw.write("own.py", f"""
import socket
listener = socket.socket(socket.AF_UNIX)
listener.bind({path!r})
listener.listen()
while True:
    listener.accept()[0].close()
""")
    pw.write("app.toml", '[app]\nname = "api"\nscript = "own.py"\n')
    pw.ok("start", "app.toml")
    inode = os.stat(path).st_ino
    append(copy, "daemon/handles.py", "WorkerHandle.recall = lambda self, memo: memo['soul']")
    kill(pw.role("daemon"))
    app = pw.wait_steady()
    assert app["state"] == "running", app
    assert os.stat(path).st_ino == inode


def test_apps_file_that_nobody_can_read_costs_no_running_app(pw: Pyworker) -> None:
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids = pw.pids()
    with open(os.path.join(pw.home, "apps.json"), "w") as file:
        file.write('{"v": 99, "apps": []}')
    kill(pw.role("daemon"))
    pw.wait_steady()
    assert pw.pids() == pids
    with open(os.path.join(pw.home, "apps.json")) as file:
        assert [app["name"] for app in json.load(file)["apps"]] == ["api"]
    pw.ok("reload", "api")


def test_daemon_whose_code_does_not_start_leaves_the_apps_alone_until_it_does(pw: Pyworker) -> None:
    copy = install(pw)
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids, daemon = pw.pids(), pw.role("daemon")
    with Load(pw.port, "new", "keep") as load:
        whole = append(copy, "daemon/brain.py", "def broken(:")
        kill(daemon)
        wait_until(lambda: "SyntaxError" in told(pw), LONG, "the daemon to be tried")
        load.wait_more(50)
        put(copy, "daemon/brain.py", whole)
        pw.wait_steady()
        assert pw.pids() == pids
    assert load.lost == []


def test_guardian_whose_code_does_not_start_is_not_become(pw: Pyworker) -> None:
    copy = install(pw)
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids, daemon = pw.pids(), pw.role("daemon")
    with Load(pw.port, "new", "keep") as load:
        whole = append(copy, "guardian/boot.py", "import nowhere")
        os.kill(pw.role("guardian"), signal.SIGKILL)
        wait_until(lambda: "No module named 'nowhere'" in told(pw), LONG, "the daemon to refuse")
        assert alive(daemon)
        load.wait_more(50)
        put(copy, "guardian/boot.py", whole)
        wait_until(lambda: pw.status().get("guardian_pid") == daemon, LONG, "the daemon to become the guardian")
        pw.wait_steady()
        assert pw.pids() == pids
    assert load.lost == []


def test_a_daemon_whose_files_are_exchanged_while_it_starts_is_started_once_more(pw: Pyworker) -> None:
    """It went on with modules of two versions."""
    copy = install(pw)
    pw.api(ASGI)
    pw.ok("start", "app.toml")
    pids, daemon, flag = pw.pids(), pw.role("daemon"), os.path.join(pw.folder, "exchanged")
    append(copy, "daemon/main.py", f"if not os.path.exists({flag!r}):\n    os.close(os.open({flag!r}, os.O_CREAT))\n    os.utime(__file__)")
    kill(daemon)
    wait_until(lambda: "daemon: the files of pyworker were exchanged while it started" in told(pw), LONG, "what is said of it")
    pw.wait_steady()
    assert pw.pids() == pids
