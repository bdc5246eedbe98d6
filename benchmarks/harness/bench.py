"""One run: contenders in turns, what fails is noted and the rest goes on. Owns the book and the clock."""

from __future__ import annotations

import contextlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from benchmarks.harness.book import Book
from benchmarks.harness.servers import Missing, Running, Spec, start


class Bench:
    """`quick`: fewer and shorter rounds, to try the harness out. `part`: what is being measured now."""

    def __init__(self, book: Book, *, quick: bool) -> None:
        self.book = book
        self.quick = quick
        self.part = ""

    def rounds(self, full: int) -> int:
        return max(1, full // 3) if self.quick else full

    def seconds(self, full: float) -> float:
        return max(1.0, full / 2) if self.quick else full

    def say(self, text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {self.part}: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Note and survive whatever goes wrong with one contender."""
        try:
            yield
        except Missing as error:
            self.book.skipped[f"{self.part}: {what}"] = str(error)
        except Exception as error:  # noqa: BLE001 - one contender must not end the run
            where = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {str(error)[:200]} ({where.name})"
            self.book.skipped[f"{self.part}: {what}"] = reason
            self.say(f"{what} failed: {reason}")

    @contextlib.contextmanager
    def running(self, contenders: dict[str, Spec]) -> Iterator[dict[str, Running]]:
        """Start all contenders side by side (idle ones cost next to nothing), and stop them."""
        started: dict[str, Running] = {}
        try:
            for name, spec in contenders.items():
                with self.attempt(name):
                    started[name] = start(name, spec)
            yield started
        finally:
            for name, each in started.items():
                with self.attempt(f"{name}, stopping"):
                    each.stop()

    def in_turns(self, names: Sequence[str], rounds: int, what: Callable[[str], None]) -> None:
        """A B A B: each round every contender once; one that fails twice is left out."""
        failures = dict.fromkeys(names, 0)
        for number in range(rounds):
            self.say(f"round {number + 1} of {rounds}")
            for name in names if number % 2 == 0 else reversed(names):
                if failures[name] < 2:
                    before = len(self.book.skipped)
                    with self.attempt(name):
                        what(name)
                    failures[name] += len(self.book.skipped) > before
