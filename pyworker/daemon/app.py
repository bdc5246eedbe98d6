"""Daemon: one app, what is wanted of it and what is seen. Values and their memo; the doing is brain.py's."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Collection
from typing import Any, Literal

from pyworker.config.address import Address
from pyworker.config.schema import AppConfig, ResolvedApp, RestartConfig, StopConfig
from pyworker.daemon.board import Board
from pyworker.daemon.desired import DesiredApp, Source
from pyworker.daemon.dispatchers import dispatcher_holds, dispatches
from pyworker.daemon.drops import Drops
from pyworker.daemon.handles import DispatcherHandle, TemplateHandle, WorkerHandle
from pyworker.daemon.ledger import Ledger
from pyworker.daemon.listener import nobody_waits
from pyworker.daemon.nodeshared import shares
from pyworker.policy.fate import UNUSABLE
from pyworker.policy.lifecycle import LEAVING, SERVING, UNTOUCHED, State
from pyworker.policy.restart import CLEAR, Record
from pyworker.policy.view import AppView, WorkerView, generation_is_open, slots_of
from pyworker.protocol.events import BY_ITSELF
from pyworker.protocol.wire import from_json, shallow_json, to_json
from pyworker.record import field, mutable, replace
from pyworker.unix.process import ExitStatus

MEMO_VERSION = 1  # of what the ledger holds: raised when an older daemon would misread it
# what the memo has of an app as it is, by these names
_REMEMBERED = (
    "generation", "last_generation", "last_serial", "wanted", "running", "target", "reload_from", "reload_started_at",
    "reload_why", "reload_base", "previous", "soak_until", "soak_deaths", "scale_before", "starting", "started_at", "restored",
    "hurry", "listening", "restart_to", "delete_when_closed", "delete_logs", "codes", "codes_at", "last_exits",
    "saved", "slot_restarts", "unusable",
)  # fmt: skip


@mutable
class Generation:
    """One load of the app's code: what it pins. The same content is in the store as env.APP.GENERATION."""

    number: int
    resolved: ResolvedApp
    listeners: tuple[int, ...] = ()  # indexes of App.listeners, in the order of config.bind
    prepared: Literal["no", "begun", "yes"] = "no"  # hooks.pre_start
    tls: tuple[bytes, bytes, bytes] = (b"", b"", b"")  # certificate, key, CA as read for this generation
    by: str = BY_ITSELF  # who has asked for it; known to the daemon that was asked

    @property
    def config(self) -> AppConfig:
        return self.resolved.config

    def pack(self) -> bytes:
        tls = [content.decode("latin-1") for content in self.tls]
        memo = {"resolved": self.resolved, "listeners": self.listeners, "tls": tls}
        return json.dumps(memo, default=shallow_json).encode()

    @classmethod
    def unpack(cls, number: int, data: bytes) -> Generation:
        value = json.loads(data)
        resolved: ResolvedApp = from_json(ResolvedApp, value["resolved"], "resolved")
        cert, key, ca = (str(text).encode("latin-1") for text in value["tls"])
        return cls(number, resolved, tuple(int(i) for i in value["listeners"]), tls=(cert, key, ca))


@mutable
class Listener:
    """A listening socket of an app; the store has it as listen.APP.INDEX and this is a copy."""

    index: int
    address: Address
    sock: socket.socket
    asked: set[int] = field(default_factory=set)  # generations whose workers have asked for it


@mutable
class Failure:
    """Why the app is not as it should be: shown by ps and describe, answered to who waits."""

    message: str
    traceback: str = ""
    hint: str = ""
    at: str = ""


@mutable
class App:
    """One app. All instants are monotonic seconds."""

    name: str
    source: Source
    board: Board
    ledger: Ledger
    generation: int = 0
    last_generation: int = 0
    last_serial: int = 0
    wanted: bool = False  # somebody asked for it to run; apps.json says so, a boot brings it back
    running: bool = False
    closed: bool = True  # nothing of it is left in the system
    scale: int | None = None
    scale_base: int | str | None = None
    scale_before: tuple[int | None, int | str | None] = (None, None)  # what the last commit has ended: a roll-back's
    stopped_slots: set[int] = field(default_factory=set)
    finished_slots: set[int] = field(default_factory=set)
    gated: frozenset[int] = frozenset()  # generations that wait for another app, or for hooks.pre_start
    blocked: Failure | None = None  # what it waits for has failed
    stops_after: tuple[str, ...] = ()  # it serves on until these have gone, which depend on it
    target: int | None = None
    target_failure: Failure | None = None
    previous: int | None = None
    soak_until: float = 0.0
    soak_deaths: int = 0
    given_up: str = ""
    starting: bool = False
    started_at: float = 0.0
    restored: bool = False  # started by a boot: nobody is there who would try again what the machine could not do yet
    start_failure: Failure | None = None
    hurry: bool = False
    listening: bool = True
    restart_to: int | None = None  # a hard restart: the generation that comes when all have gone
    delete_when_closed: bool = False
    delete_logs: bool = False
    record: Record = CLEAR
    failure: Failure | None = None
    reload_from: int | None = None  # of a committed reload whose new generation does not yet accept everywhere
    reload_started_at: float = 0.0
    reload_why: str = ""  # of the target, if nobody typed it: a file or its timetable
    reload_base: tuple[int, int] | None = None  # answered by then, and of that with 5xx; None: it counts no requests
    refused: dict[int, Failure] = field(default_factory=dict)  # generations that were given up in this round
    generations: dict[int, Generation] = field(default_factory=dict)
    listeners: dict[int, Listener] = field(default_factory=dict)
    workers: dict[int, WorkerHandle] = field(default_factory=dict)
    templates: dict[int, TemplateHandle] = field(default_factory=dict)
    template_record: Record = CLEAR
    left_behind: dict[int, list[int]] = field(default_factory=dict)  # generation -> pidfds of templates that have ended
    dispatcher: DispatcherHandle | None = None
    dispatcher_record: Record = CLEAR
    notes: list[str] = field(default_factory=list)
    last_exits: dict[int, dict[str, Any]] = field(default_factory=dict)  # slot -> its last unexpected end
    slot_restarts: dict[int, int] = field(default_factory=dict)  # slot -> how many of those
    codes: dict[int, str] = field(default_factory=dict)  # generation -> what its template found imported
    codes_at: dict[int, int] = field(default_factory=dict)  # ... and when
    # by file: generation, mtime, whether it says what was read
    compared: dict[str, tuple[int, int, bool]] = field(default_factory=dict)
    saved: tuple[int, int] = (0, 0)  # mtimes of its file: as it was read; with the number that `scale --save` wrote
    given_env: dict[str, str] = field(default_factory=dict)  # the values of -e while no generation has them
    unusable: bool = False  # it cannot be started as it is (exit code 78): another try would fail in the same way
    drops: Drops = field(default_factory=Drops)

    @property
    def is_unusable(self) -> bool:
        """Whether it, or one of its workers, has said by exit code 78 that another try would fail in the same way."""
        return self.unusable or any(last["code"] == UNUSABLE for last in self.last_exits.values())

    @property
    def stays_failed(self) -> bool:
        """Its start has failed, and who asked for it knows: nobody asked for another try. What a boot began is tried again."""
        return self.closed and self.wanted and not self.running and self.failure is not None and not self.restored

    # ---- what kind it is -----------------------------------------------------------------------------
    @property
    def current(self) -> Generation | None:
        return self.generations.get(self.generation)

    @property
    def config(self) -> AppConfig | None:
        # as `current` has it, without asking that: `ps` asks eight times an app
        generation = self.generations.get(self.generation)
        return generation.config if generation is not None else None

    @property
    def restart_config(self) -> RestartConfig:
        config = self.config
        assert config is not None
        return replace(config.restart, policy="never") if config.cron is not None else config.restart

    def stop_config(self, number: int) -> StopConfig:
        """Return how workers of a generation leave: as the one that counts says, which may be another."""
        return (self.config or self.generations[number].config).stop

    @property
    def kind(self) -> str:
        """asgi/wsgi once known, else "target", "script" or "command"."""
        config = self.config
        if config is None:
            return "unknown"
        if config.target is not None:
            template = self.templates.get(self.generation)
            return template.loaded.interface if template and template.loaded else "target"
        return "script" if config.script is not None else "command"

    @property
    def is_job(self) -> bool:
        """It runs at times of its own (cron)."""
        config = self.config
        return config is not None and config.cron is not None

    @property
    def runs_once(self) -> bool:
        """Whatever has ended it, it is not begun again by itself: a job's run, a script or command that is never restarted.

        Not what has a listener: that is replaced before it goes, or nobody would answer there.
        """
        config = self.config
        if config is None or config.target is not None:
            return False
        return config.cron is not None or (config.restart.policy == "never" and not self.listeners)

    def fill_slots(self) -> None:
        """Another generation: every slot is to be filled; those of a job when its time comes, or a run of its own has ended."""
        runs = {w.id.slot for w in self.workers.values() if w.is_alive and w.id.generation == self.generation}
        self.finished_slots = set(range(1, self.want + 1)) - runs if self.is_job else set()

    @property
    def want(self) -> int:
        """Slots 1..want, of the committed generation."""
        if self.scale is not None:
            return self.scale
        generation = self.generations.get(self.generation)
        return generation.resolved.workers if generation else 0

    @property
    def target_want(self) -> int | None:
        """Slots of a reload's target: what is `scale`d goes on unless `workers` is another now."""
        generation = self.generations.get(self.target) if self.target is not None else None
        if generation is None:
            return None
        scaled = self.scale is not None and self.scale_base == generation.config.workers
        return self.scale if scaled else generation.resolved.workers

    def view(self) -> AppView:
        config = self.config
        assert config is not None
        target, previous = self._config_of(self.target), self._config_of(self.previous)
        return AppView(
            running=self.running,
            want=self.want,
            generation=self.generation,
            restart=config.restart,
            stop=config.stop,
            reload=(target or config).reload,  # what it allows holds for the one that is being loaded
            workers=tuple(self._view_of(w) for w in self.workers.values()),
            templates=tuple(t.view() for t in self.templates.values()),
            record=self.record,
            stopped_slots=frozenset(self.stopped_slots),
            finished_slots=frozenset(self.finished_slots),
            target=self.target,
            target_want=self.target_want,
            target_failed=self.target_failure is not None,
            previous=self.previous,
            soak_until=self.soak_until,
            soak_deaths=self.soak_deaths,
            given_up=self.given_up,
            gated=self.gated,
            job=config.cron is not None,
            target_job=target is not None and target.cron is not None,
            starting=self.starting,
            start_failed=self.start_failure is not None,
            hurry=self.hurry,
            stops_later=bool(self.stops_after),
            listening=self.listening and bool(self.listeners),
            forks=config.target is not None,
            target_forks=target is not None and target.target is not None,
            previous_forks=previous is not None and previous.target is not None,
            target_holds=target is not None and _holds(target),
            template_record=self.template_record,
            overlaps=overlaps(config) and (target is None or overlaps(target)),
            dispatches=self.dispatches,
            dispatcher=self.dispatcher.view() if self.dispatcher else None,
            dispatcher_record=self.dispatcher_record,
            keep_listening=self.keep_listening,
            nobody_waits=self._nobody_waits(),
        )

    def _config_of(self, number: int | None) -> AppConfig | None:
        generation = self.generations.get(number) if number is not None else None
        return generation.config if generation is not None else None

    def _view_of(self, worker: WorkerHandle) -> WorkerView:
        config = self._config_of(worker.id.generation)
        job = config is not None and config.cron is not None
        return worker.view(hears=self._hears(worker), left=self._has_left(worker), job=job)

    def _hears(self, worker: WorkerHandle) -> bool:
        """Whether a worker understands Drain; a script that binds for itself does once it has."""
        config = self._config_of(worker.id.generation)
        return config is not None and (_drains(config) or (config.script is not None and worker.bound))

    def _has_left(self, worker: WorkerHandle) -> bool | None:
        if worker.state not in LEAVING or not self.tells_when_it_has_left(worker):
            return None
        return self.board.has_left(worker.id.serial)

    def tells_when_it_has_left(self, worker: WorkerHandle) -> bool:
        """Whether a worker says when it accepts no more: ours do, and scripts that have bound a port."""
        config = self._config_of(worker.id.generation)
        return config is not None and (config.target is not None or (config.script is not None and worker.bound))

    def _nobody_waits(self) -> bool:
        """Asked at a stop only. A program's own accept would fail on a listener that is shut."""
        if self.running or not self.listening or any(g.config.target is None for g in self.generations.values()):
            return False
        return all(nobody_waits(x.sock) for x in self.listeners.values())

    @property
    def dispatches(self) -> bool:
        """Whether any of its connections are handed out: those of today's workers, or of tomorrow's."""
        numbers = {self.generation, self.target, self.previous} | {w.id.generation for w in self.workers.values()}
        return any(dispatches(g) for n, g in self.generations.items() if n in numbers)

    def is_open(self, now: float) -> bool:
        """Every wanted slot has an accepting worker of the committed generation."""
        return generation_is_open(self.view(), now) if self.current else False

    def has_been_checked(self, slots: Collection[int] | None = None) -> bool:
        """Each wanted slot (of these) has a worker whose health is known: its first check has passed, or too many have failed."""
        known = {w.id.slot for w in self._serving() if w.checked or w.state is State.UNHEALTHY}
        return all(slot in known for slot in self.slots() if slots is None or slot in slots)

    def well_slots(self) -> set[int]:
        """Slots with a worker whose last check has passed (or there is none to pass)."""
        return {w.id.slot for w in self._serving() if w.checked and w.state is not State.UNHEALTHY}

    def sick(self, slots: Collection[int] | None = None) -> WorkerHandle | None:
        """Return a worker that fails its checks, of a slot (of these) that has no better one."""
        well = self.well_slots()
        ill = (w for w in self._serving() if w.state is State.UNHEALTHY and w.id.slot not in well)
        return next((w for w in ill if slots is None or w.id.slot in slots), None)

    def _serving(self) -> list[WorkerHandle]:
        return [w for w in self.workers.values() if w.state in SERVING and w.id.generation == self.generation]

    def settled_at(self, now: float) -> float | None:
        """When its workers have had the time to ask for all listeners that they use; None: not as long as one is missing."""
        ready = [w.ready_at for w in self.workers.values() if w.is_alive and w.id.generation == self.generation]
        if self.config is None or not self.is_open(now) or None in ready:
            return None
        return max(at for at in ready if at is not None) + self.config.reload.ready_timeout

    def slots(self) -> list[int]:
        return slots_of(self) if self.current else []

    def ready_count(self) -> int:
        """Slots with an accepting worker, of any generation."""
        slots = set(self.slots())
        return len({w.id.slot for w in self.workers.values() if w.state in SERVING and w.id.slot in slots})

    def answered_since_reload(self) -> dict[str, int | None]:
        """Return `requests`, answered since the reload was asked for, and how many of them `failed` (5xx); None where nobody counts."""
        if self.reload_base is None:
            return {"requests": None, "failed": None}
        requests, failed = self.board.answered()
        return {"requests": max(0, requests - self.reload_base[0]), "failed": max(0, failed - self.reload_base[1])}

    def has_untouched(self) -> bool:
        """Somebody of the committed generation serves, or is on the way to."""
        return any(w.state in UNTOUCHED and w.id.generation == self.generation for w in self.workers.values())

    def has_ended_badly(self) -> bool:
        """A worker that its policy does not begin again has ended, and not with code 0. The next run of a job comes by itself."""
        ends = [self.last_exits[slot] for slot in self.finished_slots if slot in self.last_exits]
        return not self.is_job and any(last["code"] != 0 for last in ends)

    @property
    def keep_listening(self) -> bool:
        """All stop for a hard restart: the listeners stay open in between."""
        return self.restart_to is not None and not self.running

    @property
    def is_stopping(self) -> bool:
        """All of it is to leave, and nothing comes after it."""
        return not (self.closed or self.running or self.restart_to is not None)

    def is_empty(self) -> bool:
        if self.dispatcher is not None and self.dispatcher.finished:
            return False
        return not any(w.is_alive for w in self.workers.values()) and not self.templates

    # ---- what survives ---------------------------------------------------------------------------------
    def desired(self) -> DesiredApp:
        return DesiredApp(
            self.name,
            self.source,
            self.wanted,
            max(self.generation, 1),
            tuple(sorted(self.stopped_slots)),
            self.scale,
            self.scale_base,
        )

    def write_memo(self) -> None:
        """Put down what fd names and scoreboard cannot say."""
        memo: dict[str, Any] = {
            "v": MEMO_VERSION,
            **{name: getattr(self, name) for name in _REMEMBERED},
            "source": to_json(self.source),
            "scale": (self.scale, self.scale_base),  # for when apps.json is lost
            "stopped_slots": sorted(self.stopped_slots),
            "finished_slots": sorted(self.finished_slots),
            "record": to_json(self.record),
            "template_record": to_json(self.template_record),
            "dispatcher_record": to_json(self.dispatcher_record),
            "failure": dict(vars(self.failure)) if self.failure else None,
            "notes": self.notes[-20:],
            "dispatcher": self.dispatcher.memo() if self.dispatcher else None,
            "listeners": {str(x.index): dict(vars(x.address)) for x in self.listeners.values()},
            "asked": {str(x.index): sorted(x.asked) for x in self.listeners.values()},
            "workers": {str(w.id): w.memo() for w in self.workers.values() if w.is_alive},
            "templates": {str(t.generation): t.memo() for t in self.templates.values()},
        }
        with contextlib.suppress(OSError):  # a memo that is too large: the next daemon knows less, that is all
            self.ledger.write(memo)

    def recall(self, memo: dict[str, Any]) -> None:
        """Take over the app's part of a memo. It may be of an older version: what is new here is read with `get`."""
        if int(memo.get("v", 1)) > MEMO_VERSION:
            raise ValueError(f"a memo of version {memo['v']}, and this pyworker reads up to {MEMO_VERSION}")
        for name in _REMEMBERED:
            if name in memo:
                setattr(self, name, memo[name])
        self.stopped_slots = set(memo["stopped_slots"])
        self.finished_slots = set(memo["finished_slots"])
        self.reload_base = tuple(memo["reload_base"]) if memo.get("reload_base") else None
        self.scale_before = tuple(memo.get("scale_before", (None, None)))
        self.saved = tuple(memo.get("saved", (0, 0)))
        self.record = _record(memo["record"])
        self.template_record = _record(memo.get("template_record"))
        self.dispatcher_record = _record(memo.get("dispatcher_record"))
        self.failure = Failure(**memo["failure"]) if memo["failure"] else None
        self.last_exits = {int(slot): last for slot, last in memo["last_exits"].items()}
        self.slot_restarts = {int(slot): count for slot, count in memo["slot_restarts"].items()}
        self.codes = {int(number): code for number, code in memo.get("codes", {}).items()}
        self.codes_at = {int(number): at for number, at in memo.get("codes_at", {}).items()}
        self.notes = list(memo["notes"])


def note_exit(app: App, slot: int, status: ExitStatus, after_s: float, reason: str, at: str) -> None:
    """Note the last unexpected end of a slot's worker."""
    app.last_exits[slot] = {
        "code": status.code,
        "signal": status.signal,
        "after_s": after_s,
        "reason": reason[:300],
        "at": at,
    }


def _record(memo: dict[str, Any] | None) -> Record:
    return Record(**{**memo, "deaths": tuple(memo["deaths"])}) if memo else CLEAR


def _holds(config: AppConfig) -> bool:
    """Whether a worker of it can be ready without accepting."""
    return config.target is not None or config.script is not None or dispatcher_holds(config)


def overlaps(config: AppConfig) -> bool:
    """Whether two workers of a slot can live side by side."""
    return _holds(config) or bool(config.bind)


def _drains(config: AppConfig) -> bool:
    """Whether its workers understand Drain from their birth on."""
    return config.target is not None or dispatcher_holds(config) or shares(config)
