"""Each life in a process of its own, which it may leave in any state: run here, in turn, or for whoever writes a seed to stdin.

    python -m tests.simulation.lives 17 99           these seeds
    python -m tests.simulation.lives --seconds 600   new ones, for as long
    python -m tests.simulation.lives --serve         those that are written to stdin, an answer each
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import traceback
from time import monotonic  # before a world has its own

from pyworker.record import record
from tests.simulation.apps import KINDS
from tests.simulation.world import World

LAST = 60  # lines of its log that tell most
_FDS = 4096
_kept: list[World] = []  # the first, whose sockets must not be closed after their numbers were


@record
class Life:
    """How one went."""

    seed: int
    weather: str
    violations: list[str]
    log: list[str]

    def told(self, lines: int) -> str:
        last = "\n".join(self.log[-lines:])
        return f"{last}\nseed {self.seed} ({self.weather}): {self.violations[0]}\nagain: make lives SEEDS={self.seed}"


def live(seed: int) -> Life:
    reading, writing = os.pipe()
    home = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    pid = os.fork()
    if not pid:
        try:
            os.close(reading)
            world = World(seed, home)
            world.live()
            answer = [world.weather_name, world.violations, world.log]
        except BaseException:  # noqa: BLE001  nothing may go on here as if it were the parent
            answer = ["", [traceback.format_exc()], []]
        with open(os.dup(writing), "w") as file:
            json.dump(answer, file)
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        answer = json.loads(file.read() or '["", ["its process died"], []]')
    os.waitpid(pid, 0)
    shutil.rmtree(home)
    return Life(seed, *answer)


def get_ready() -> None:
    """Import and fill all caches that the first life would: all others start from here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(_FDS, hard), hard))
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with tempfile.TemporaryDirectory() as home:
        _kept.append(world := World(1, home, weather="deaths", apps=list(KINDS)))
        world.live()
    gc.collect()
    gc.disable()  # whoever was killed must not be collected; nor decide when
    gc.freeze()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("seeds", type=int, nargs="*")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--log", action="store_true", help="all of each life")
    parser.add_argument("--serve", action="store_true")
    asked = parser.parse_args()
    end = monotonic() + (asked.seconds or 0)
    get_ready()
    if asked.serve:
        for line in sys.stdin:
            life = live(int(line))
            print(json.dumps([life.seed, life.weather, life.violations, life.log]), flush=True)
        return 0
    begin = random.SystemRandom().randrange(1 << 31)
    count = failed = 0
    for seed in asked.seeds or itertools.count(begin):
        if not asked.seeds and monotonic() >= end:
            break
        life = live(seed)
        count += 1
        failed += bool(life.violations)
        if asked.log:
            print(*life.log, sep="\n")
        if life.violations:
            print(life.told(LAST), flush=True)
    print(f"{count} lives, {failed} with a violation")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
