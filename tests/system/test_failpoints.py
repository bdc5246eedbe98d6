"""Something goes wrong at every named place of start, adopt, reload, rotate and upgrade, under load: nobody is refused.

One tree of processes for all of it: a point is armed, what passes it is done, and the tree must be whole again.
`make test` runs every second point with one action each; `make failpoints` runs all (PYWORKER_TEST_ALL=1).
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator

import psutil
import pytest

from pyworker.failpoint import POINTS
from tests.support.control import ask
from tests.support.load import Load
from tests.support.pyworker import LONG, Pyworker, alive, has_zombies, port_is_closed, running
from tests.support.sources import ASGI, version
from tests.support.wait import wait_until

APP = ASGI.replace('    elif path == "/block":', '    elif path == "/print":\n        print("x" * 3000)\n    elif path == "/block":')
ACTIONS = ("kill", "raise", "sleep:0.3")


class World:
    """The tree, and what may be done to it."""

    def __init__(self, pw: Pyworker) -> None:
        self.pw = pw
        pw.make_failpoints()
        pw.api(APP, tables='[app.logs]\nmax_size = "4KB"\nmax_files = 3\n[app.reload]\nsoak = "0s"\n[app.restart]\nmin_uptime = "0s"\nwindow = "1s"')
        pw.ok("start", "app.toml")
        self.versions = itertools.count(2)
        self.killed: set[int] = set()  # workers

    def status(self) -> dict[str, int]:
        answer = ask(self.pw.home, {"type": "status"})
        return answer["body"] if answer is not None and answer["type"] == "reply" else {}

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not alive(pid), LONG, f"{pid} to die")

    # ---- what passes the points ------------------------------------------------------------------------
    def kill_daemon(self) -> None:
        self.kill(self.status()["pid"])

    def kill_guardian(self) -> None:
        self.kill(self.status()["guardian_pid"])

    def kill_logger(self) -> None:
        self.kill(self.status()["logger_pid"])

    def kill_template(self) -> None:
        def killed() -> bool:
            try:
                self.kill(self.template())
            except ProcessLookupError:  # it has just ended, by what was armed before
                return False
            return True

        wait_until(killed, LONG, "a template to kill")

    def have_a_child_of_the_guardian(self) -> None:
        """Workers that have outlived a guardian are nobody's child: their end is not the guardian's to tell."""
        guardian = self.status()["guardian_pid"]
        if guardian not in self.parents():
            # nor are those that a template forks which has outlived one
            old = self.template()
            self.kill(old)
            wait_until(lambda: self.pw.describe_template() not in (0, old), LONG, "another template")
            self.kill(self.pw.pids()[0])
            wait_until(lambda: self.is_whole() and guardian in self.parents(), LONG, "a worker of this guardian")
        wait_until(lambda: not has_zombies(guardian), LONG, "the dead to be collected: it would pass guardian.collect")

    def template(self) -> int:
        return wait_until(self.pw.describe_template, LONG, "a template")

    def parents(self) -> list[int]:
        return [psutil.Process(pid).ppid() for pid in self.pw.pids()]

    def kill_worker(self) -> None:
        guardian = self.status()["guardian_pid"]
        pid = next(pid for pid in self.pw.pids() if psutil.Process(pid).ppid() == guardian)
        self.killed.add(pid)
        self.kill(pid)

    def kill_worker_beside_a_spare(self) -> None:
        generation = self.pw.app()["gen"]
        wait_until(lambda: self.pw.spares(generation), LONG, "a spare of the template that is asked")
        self.kill_worker()

    def reload(self) -> None:
        self.pw.write("web.py", version(APP, f"v{next(self.versions)}"))
        # it may fail, or lose the daemon that it asked; what counts is what is there in the end
        self.pw.run("reload", "api")

    def upgrade(self) -> None:
        self.pw.run("daemon", "upgrade", "--force")

    def start_and_delete_a_command(self) -> None:
        self.pw.run("start", "--name", "job", "--", "sleep", "600")
        self.pw.run("delete", "job")

    def start_and_delete_a_script(self) -> None:
        self.pw.write("job.py", "import time\ntime.sleep(600)\n")
        self.pw.run("start", "--name", "job", "job.py")
        self.pw.run("delete", "job")

    def rotate(self) -> None:
        for _ in range(6):
            self.pw.get("/print")

    # ---- the end ---------------------------------------------------------------------------------------
    def is_whole(self) -> bool:
        status = self.status()
        pids = [status.get(name) for name in ("pid", "guardian_pid", "logger_pid")]
        if not all(pid and alive(pid) for pid in pids):
            return False
        answer = ask(self.pw.home, {"type": "ps"})
        if answer is None or answer["type"] != "reply":
            return False
        app = answer["body"]["apps"][0]
        count, pool = app["workers"], app["pool"]
        return (
            app["state"] == "running"
            and count["want"] == count["ready"] == count["total"] == 2
            and all(w["state"] == "ready" and w["gen"] == app["gen"] and alive(w["pid"]) for w in pool)
        )

    def wait_whole(self, why: str) -> None:
        try:
            wait_until(self.is_whole, LONG)
        except AssertionError:
            seen = f"{self.status()}\n{ask(self.pw.home, {'type': 'ps'})}\n{self.pw.daemon_log()}"
            raise AssertionError(f"{why}: not whole\n{seen}") from None

    def is_gone(self) -> bool:
        return port_is_closed(self.pw.port) and not self.pw.processes()


SCENARIOS: dict[str, Callable[[World], None]] = {
    "guardian.adopted": World.kill_guardian,
    "guardian.start_logger": World.kill_logger,
    "guardian.start_daemon": World.kill_daemon,
    "guardian.daemon_started": World.kill_daemon,
    "guardian.store": World.kill_worker,
    "guardian.exited": World.kill_worker,
    "guardian.collect": World.kill_worker,
    "guardian.exec": World.upgrade,
    "guardian.execed": World.upgrade,
    "guardian.leave": World.upgrade,
    "guardian.stands_by": World.upgrade,
    "daemon.restored": World.kill_daemon,
    "daemon.adopt_app": World.kill_daemon,
    "daemon.adopted": World.kill_daemon,
    "daemon.serving": World.kill_daemon,
    "daemon.leave": World.upgrade,
    "daemon.become_guardian": World.kill_guardian,
    "start.listening": World.reload,
    "start.pinned": World.reload,
    "spawn.template": World.kill_template,
    "spawn.worker": World.kill_worker,
    "spawn.claim": World.kill_worker,
    "launch.born": World.start_and_delete_a_script,
    "launch.started": World.start_and_delete_a_command,
    "launch.leave": World.start_and_delete_a_command,
    "template.loaded": World.kill_template,
    "template.fork": World.kill_worker,
    "template.forked": World.kill_worker,
    "spare.park": World.kill_worker,
    "spare.order": World.kill_worker_beside_a_spare,
    "save.before_rename": World.reload,
    "save.after_rename": World.reload,
    "ledger.half": World.kill_worker,
    "reload.target": World.reload,
    "reload.before_commit": World.reload,
    "reload.committed": World.reload,
    "reload.go": World.reload,
    "reload.drain": World.reload,
    "death.finish": World.kill_worker,
    "death.bury": World.kill_worker,
    "logger.take": World.kill_logger,
    "logger.write": World.rotate,
    "logger.leave": World.upgrade,
    "rotate.before_rename": World.rotate,
    "rotate.after_rename": World.rotate,
}
# killed here, guardian and daemon are dead at once: nobody is left who could go on, and nothing may stay either
BOTH_DEAD = {"guardian.adopted", "guardian.start_daemon", "guardian.daemon_started", "daemon.become_guardian"}

ALL = [(point, action) for point in POINTS for action in ACTIONS]
PART = [(point, ACTIONS[i // 2 % 3]) for i, point in enumerate(POINTS) if i % 2 == 0]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with running() as pw:
        yield World(pw)


@pytest.mark.parametrize(("point", "action"), ALL if os.environ.get("PYWORKER_TEST_ALL") else PART)
def test_nobody_is_refused_and_all_is_whole_again(world: World, point: str, action: str) -> None:
    if world.is_gone():
        world.pw.ok("daemon", "start")
    world.wait_whole("before")
    if SCENARIOS[point] in (World.kill_worker, World.kill_worker_beside_a_spare):
        world.have_a_child_of_the_guardian()
    world.killed.clear()
    passed = world.pw.arm(point, action) + ".hit"
    outage = action == "kill" and point in BOTH_DEAD
    with Load(world.pw.port, "new", "keep", pause=0.01) as load:
        SCENARIOS[point](world)
        wait_until(lambda: os.path.exists(passed), LONG, lambda: f"{point} to be passed\n{world.pw.daemon_log()}")
        if outage:
            wait_until(lambda: world.is_gone() or world.is_whole(), LONG, "all of it or nothing")
        else:
            world.wait_whole("after")
            load.wait_more(10)
    os.unlink(passed)
    if not outage:
        assert [lost for lost in load.lost if "refused" in lost.lower()] == []
        assert len(load.lost) <= 2 * len(world.killed), load.lost


def test_a_start_goes_on_whose_daemon_was_killed_while_it_made_the_template(world: World) -> None:
    world.wait_whole("before")
    passed = world.pw.arm("spawn.template", "kill") + ".hit"
    with Load(world.pw.port, "new", pause=0.01) as load:
        world.pw.run("restart", "api")
        wait_until(lambda: os.path.exists(passed), LONG, lambda: f"it to be passed\n{world.pw.daemon_log()}")
        world.wait_whole("after")
        load.wait_more(10)
    os.unlink(passed)
    assert [lost for lost in load.lost if "refused" in lost.lower()] == []


# a daemon that is killed there: whether the new code serves in the end
HALF_DONE = {
    "reload.target": False,
    "reload.before_commit": False,
    "save.before_rename": False,
    "save.after_rename": True,
    "reload.committed": True,
    "reload.go": True,
    "reload.drain": True,
}


@pytest.mark.parametrize("point", HALF_DONE)
def test_a_half_done_reload_is_rolled_back_before_its_commit_and_forward_after(world: World, point: str) -> None:
    world.wait_whole("before")
    old, new = world.pw.get().split()[0], f"v{next(world.versions)}"
    world.pw.write("web.py", version(APP, new))
    with Load(world.pw.port, "new", "keep", pause=0.01) as load:
        if point.startswith("save."):  # of the commit: a reload saves before it, too
            held_up = world.pw.arm("reload.before_commit", "hold") + ".hit"
            reload = world.pw.popen("reload", "api")
            wait_until(lambda: os.path.exists(held_up), LONG, "the commit to be near")
            passed = world.pw.arm(point, "kill") + ".hit"
            os.unlink(held_up)
            reload.communicate(timeout=60)
        else:
            passed = world.pw.arm(point, "kill") + ".hit"
            world.pw.run("reload", "api")
        wait_until(lambda: os.path.exists(passed), LONG, lambda: f"{point} to be passed\n{world.pw.daemon_log()}")
        world.wait_whole("after")
    os.unlink(passed)
    assert load.lost == []
    assert {world.pw.get().split()[0] for _ in range(4)} == {new if HALF_DONE[point] else old}
