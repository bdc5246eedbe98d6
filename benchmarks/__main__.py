"""`make bench`: measure pyworker beside its peers, in turns; one table, JSON, charts.

    python -m benchmarks [PART ...] [--quick] [--report]      PART: see parts/__init__.py; none = all

Figures go into benchmarks/results.json; a part that is measured again replaces its old ones. `--report` only renders.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import time

from benchmarks.harness import peers, report
from benchmarks.harness.bench import Bench
from benchmarks.harness.book import Book
from benchmarks.parts import ORDER

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
RESULTS = os.path.join(ROOT, "benchmarks", "results.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure pyworker beside its peers.")
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure: " + " ".join(ORDER))
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds: to try it out")
    parser.add_argument("--report", action="store_true", help="measure nothing, only render the last figures")
    parser.add_argument("--results", default=RESULTS, help="the JSON file that is added to")
    parser.add_argument("--no-docs", action="store_true", help="do not touch docs/performance.md, its charts and the README")
    options = parser.parse_args()
    # Ended in the middle by whatever signal, no server of a peer is left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    unknown = [part for part in options.parts if part not in ORDER]
    if unknown:
        parser.error(f"no such part: {unknown[0]} (there are {' '.join(ORDER)})")
    book = Book.load(options.results)
    if not options.report:
        measure(book, options.parts or list(ORDER), options.results, quick=options.quick)
    print(report.table(book))
    if not options.no_docs:
        report.render(book, ROOT)
    return 0


def measure(book: Book, parts: list[str], results: str, *, quick: bool) -> None:
    missing = peers.install()
    book.skipped.update({f"install: {name}": why for name, why in missing.items()})
    book.describe_machine(peers.versions())
    for part in parts:
        book.forget(part)
        bench = Bench(book, quick=quick)
        bench.part = part
        began = time.monotonic()
        with bench.attempt("all of it"):
            importlib.import_module(f"benchmarks.parts.{part}").run(bench)
        book.seconds[part] = round(time.monotonic() - began, 1)
        bench.say(f"{book.seconds[part]} s")
        book.save(results)


if __name__ == "__main__":
    sys.exit(main())
