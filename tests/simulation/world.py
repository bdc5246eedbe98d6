"""One life of a daemon: a clock that only the scheduler moves, and the scheduler, which by one seed chooses what is next."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import socket
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import TypeVar

from pyworker.protocol import control as k
from tests.simulation.apps import CODES, Apps
from tests.simulation.clients import Clients
from tests.simulation.daemon import Daemon, Killed
from tests.simulation.guardian import Guardian
from tests.simulation.invariants import Invariants
from tests.simulation.kernel import GUARDIAN, Kernel
from tests.simulation.processes import Move, Process

STEPS = 300  # before the world becomes kind
# what may go wrong, and how likely that is each time it could
WEATHERS = MappingProxyType(
    {
        "calm": {"recycles": 0.01},
        "deaths": {"dies": 0.02, "recycles": 0.01, "changes": 0.005},
        "all": {"dies": 0.01, "killed": 0.01, "no_fork": 0.05, "recycles": 0.01, "changes": 0.005, "upgrade": 0.004},
        "kills": {"killed": 0.03, "recycles": 0.01, "changes": 0.005, "upgrade": 0.004},
        "noisy": {"dies": 0.01, "killed": 0.005, "no_fork": 0.05, "no_process": 0.05, "full": 0.01, "no_descriptor": 0.003}
        | {"no_disk": 0.05, "changes": 0.005},
        "scarce": {"dies": 0.005, "no_descriptor": 0.02, "no_disk": 0.1, "changes": 0.005},
        # one app that is reloaded all the time: it must never serve with fewer workers than it has
        "reloads": {"killed": 0.01, "upgrade": 0.004, "changes": 0.005},
    }
)
_SETTLES = 70.0, 200.0  # seconds: a failed app is tried again each 60
_MOST_STEPS = 4000  # until it has settled
_IDLE = 120.0  # seconds in which next to nothing is called back
_IDLE_CALLS = 160

Kind = TypeVar("Kind", bound=Process)


class World:
    def __init__(self, seed: int, home: str, *, weather: str | None = None, apps: list[str] | None = None) -> None:
        self.rng = random.Random(seed)
        random.seed(seed)  # the daemon's own: jitter
        self.home = home
        self.now = 1000.0
        self.step = 0
        self.is_kind = self.is_daemons_turn = self.is_dying = False
        self.log: list[str] = []
        self.violations: list[str] = []
        self.events: Counter[str] = Counter()
        self.graveyard: list[object] = []  # nothing of a killed daemon may be collected: it would close what is another's
        self.weather_name = weather or self.rng.choice([*WEATHERS, "all"])
        self._weather: dict[str, float] = WEATHERS[self.weather_name]
        self._killed_in = 0  # points; 0: it is not
        self.last_pid = GUARDIAN + 10
        self.processes: dict[int, Process] = {}
        self.kernel = Kernel(self)
        self.apps = Apps(self.rng, home, ["forked"] if self.weather_name == "reloads" else apps)
        self.invariants = Invariants(self)
        self.clients = Clients(self)
        self._fds_before = _open_fds()
        self.guardian = Guardian(self)
        self.daemon: Daemon

    # ---- what the others use -----------------------------------------------------------------------------
    def say(self, text: str) -> None:
        self.log.append(f"{self.step:4} {self.now:9.3f} {text}".replace(self.home, "HOME"))

    def fail(self, text: str) -> None:
        self.violations.append(text.replace(self.home, "HOME"))
        self.say(f"VIOLATION: {text}")

    def report(self, what: str) -> None:
        """Take what the daemon would write into its log."""
        error = sys.exception()
        self.fail(what + ": " + "".join(traceback.format_exception(error)) if error else what)

    def chance(self, what: str) -> bool:
        likely = self._weather.get(what, 0.0)
        return likely > 0 and not self.is_kind and self.rng.random() < likely

    def alive(self, kind: type[Kind]) -> list[Kind]:
        return [process for process in self.processes.values() if process.is_alive and isinstance(process, kind)]

    @contextlib.contextmanager
    def others_turn(self) -> Iterator[None]:
        """What happens in here happens to others while the daemon waits for it."""
        before, self.is_daemons_turn = self.is_daemons_turn, False
        try:
            yield
        finally:
            self.is_daemons_turn = before

    def point(self, name: str) -> None:
        """Pass a moment at which the daemon may be killed."""
        if name == "save.before_rename" and self.chance("no_disk"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._killed_in and not self.is_dying:
            self._killed_in -= 1
            if not self._killed_in:
                self.is_dying = True
                self.say(f"the daemon is killed: {name}")
                # what is being unwound has no say any more
                with contextlib.suppress(OSError):
                    self.daemon.store.channel.shutdown(socket.SHUT_RDWR)
                raise Killed

    def daemons_fds(self) -> set[int]:
        return _open_fds() - self._others_fds()

    def _others_fds(self) -> set[int]:
        found = self._fds_before | set(self.guardian.store.values()) | self.clients.fds()
        for process in self.processes.values():
            found |= {process.pidfd, process.end_of_life, *process.fds}
        if self.guardian.channel is not None:
            found.add(self.guardian.channel.fileno())
        return found

    # ---- daemons -----------------------------------------------------------------------------------------
    def _boot(self, reason: str) -> None:
        self.say(f"a daemon starts: {reason}")
        self.is_dying = False
        channel = self.guardian.starts_daemon(reason)
        self._as_daemon(lambda: Daemon(self, channel), scarce=False)  # it would end, and the guardian try again

    def _as_daemon(self, do: Callable[[], object], *, scarce: bool = True) -> None:
        self.is_daemons_turn = scarce
        try:
            do()
        except Killed as killed:
            self.is_daemons_turn = False
            self.graveyard.append(killed)  # with all frames
            self._bury("killed by KILL")
        finally:
            self.is_daemons_turn = False

    def _bury(self, reason: str) -> None:
        self._killed_in = 0
        self.graveyard.append(self.daemon)
        self.guardian.loses_daemon()
        for fd in self.daemons_fds():
            with contextlib.suppress(OSError):  # the one of the listing
                os.close(fd)
        for process in self.processes.values():
            if process.parent == "daemon":
                process.parent = "guardian"
        self.clients.lose_daemon()
        self._boot(reason)

    def _upgrade(self) -> None:
        self._killed_in = 0
        if self.daemon.leaves():
            self.is_dying = True
            self._bury("upgrade")

    # ---- steps -------------------------------------------------------------------------------------------
    def live(self) -> None:
        """Run a whole life; what was wrong is in `violations`, and the first of them ends it."""
        self.kernel.install()
        try:
            for _ in self._stages():
                if self.violations:
                    break
        except Exception:  # noqa: BLE001  also of the simulation itself: it is then to be mended
            self.report("the life was ended by an exception")

    def _stages(self) -> Iterator[None]:
        self.apps.write()
        self._boot("boot")
        self.clients.asks(k.Start(file=self.apps.file))
        for self.step in range(1, STEPS + 1):
            self._step()
            self.invariants.after_step()
            yield
        self.say("the world is kind from here on")
        self.is_kind, self._killed_in = True, 0
        self.apps.code.clear()
        for process in self.alive(Process):
            process.code = "hangs" if process.code == "hangs" else "good"  # an import that hangs is ended, for which there is time
        self.apps.write()
        for seconds in _SETTLES:
            self._settle(seconds)
            yield
        self.invariants.when_settled()
        yield
        calls = self.daemon.loop.calls
        self._settle(_IDLE)
        if self.daemon.loop.calls - calls > _IDLE_CALLS:
            self.fail(f"{self.daemon.loop.calls - calls} callbacks in {_IDLE:g} idle seconds")
        yield
        if self.daemon.brain.apps:
            self.clients.asks(k.Delete(tuple(self.daemon.brain.apps)))
            self._settle(100.0)
            yield
        self.invariants.when_deleted()
        yield

    def _step(self) -> None:
        """Do one thing of all that could be next."""
        rng, reloads = self.rng, self.weather_name == "reloads"
        if not self._killed_in and self.chance("killed"):
            self._killed_in = rng.randrange(1, 12)
        if reloads and not self.daemon.brain.apps and not self.clients.waiting():
            self.clients.asks(k.Start(file=self.apps.file))
            return
        if self.chance("upgrade"):
            self._upgrade()
            return
        dice = rng.random()
        if dice < (0.05 if reloads else 0.02):
            self.clients.asks(self.clients.random())
        elif dice < 0.025 and self._weather.get("changes"):
            self._change_code()
        elif dice < 0.03 and not reloads:
            self.apps.workers[rng.choice(list(self.apps.workers))] = rng.randrange(1, 4)
            self.apps.write(broken=rng.random() < 0.2)
        elif dice < 0.033:
            self.clients.one_hangs_up()
        elif dice < 0.45:
            self._turn()
        elif (moves := self._moves()) and (reloads or rng.random() < 0.93):
            self._do(rng.choices(moves, [move.weight for move in moves])[0])
        else:
            self._pass_time()

    def _turn(self) -> None:
        self._as_daemon(lambda: self.daemon.loop.turn(0))

    def _moves(self) -> list[Move]:
        moves = [move for process in self.alive(Process) for move in process.moves()]
        return [*moves, *self.guardian.moves(), *self.clients.moves()]

    def _do(self, move: Move) -> None:
        if move.of is None or move.of.is_alive:
            self.say(move.what)
            move.do()

    def _pass_time(self) -> None:
        at = self.daemon.loop.next_timer()
        if at is None or self.rng.random() < 0.5:
            self._advance(self.now + self.rng.choice([0.001, 0.01, 0.05, 0.3]))
        else:
            self._advance(max(self.now, at) + 0.0001)

    def _advance(self, to: float) -> None:
        self.now = to
        for process in self.processes.values():
            if isinstance(process.parent, int):  # a launcher keeps what it has started for a moment only
                process.parent = "guardian"

    def _change_code(self) -> None:
        # what serves in a life of reloads must not crash
        code = self.rng.choice([code for code in CODES if code != "crashy" or self.weather_name != "reloads"])
        name = self.rng.choice(list(self.apps.workers))
        self.apps.code[name] = code
        self.say(f"the code of {name} is {code} now")

    def _settle(self, seconds: float) -> None:
        """Let everything happen that can, for so long, to the middle of a minute: no job is due."""
        end = self.now + seconds
        end += (30.0 - end) % 60.0
        for _ in range(_MOST_STEPS):
            if self.violations:
                return
            self.step += 1
            moves = self._moves()
            for move in moves:
                self._do(move)
            calls = self.daemon.loop.calls
            self._turn()
            if moves or self.daemon.loop.calls != calls or not self.daemon.loop.is_idle():
                continue
            at = self.daemon.loop.next_timer()
            if at is None or at > end:
                self.now = end
                return
            self._advance(max(self.now, at) + 0.0001)
        self.fail(f"it has not settled within {_MOST_STEPS} steps")


def _open_fds() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}
