"""Some lives; `make lives` runs more, and longer. What is simulated, and how: __init__.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.simulation.lives import LAST, Life

SEEDS = (*range(1, 21), 2077415710)  # the last: killed between the order for a held worker and its memo
Live = Callable[[int], Life]


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """A process that has forked and closed nothing yet: pytest's own has descriptors and threads that are not ours."""
    argv = [sys.executable, "-m", "tests.simulation.lives", "--serve"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as lives:
        assert lives.stdin is not None
        assert lives.stdout is not None
        stdin, stdout = lives.stdin, lives.stdout

        def live(seed: int) -> Life:
            print(seed, file=stdin, flush=True)
            return Life(*json.loads(stdout.readline()))

        yield live
        stdin.close()
        assert lives.wait() == 0


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed {seed}")
def test_whatever_happens_in_whichever_order_what_is_wanted_comes_to_be_and_nothing_else_stays(live: Live, seed: int) -> None:
    life = live(seed)
    assert not life.violations, life.told(LAST)


def test_a_seed_repeats_its_life_to_the_letter_whatever_the_hashes_are(live: Live) -> None:
    seeds = ["5", "6"]
    argv = [sys.executable, "-m", "tests.simulation.lives", "--log", *seeds]
    again = subprocess.run(argv, env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True).stdout
    assert again == "".join(f"{line}\n" for seed in seeds for line in live(int(seed)).log) + "2 lives, 0 with a violation\n"
