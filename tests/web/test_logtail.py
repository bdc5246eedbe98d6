"""What the dashboard reads of a log that grows faster than a browser can show."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the dashboard is an extra: pip install 'pyworker[web]'")
from pyworker.web import logtail


def lines(first: int, end: int) -> bytes:
    return b"".join(b"2026-11-23T14:02:31.104Z api.1 41210 out| line %06d\n" % i for i in range(first, end))


def test_a_flood_is_read_from_its_end_and_what_was_left_out_is_said(tmp_path: Path) -> None:
    asyncio.run(flooded(tmp_path / "api.log"))


async def flooded(path: Path) -> None:
    path.write_bytes(lines(0, 10))
    async with contextlib.aclosing(logtail.follow(str(path), 300)) as batches:  # type: ignore[type-var]
        assert [r["msg"] for r in await anext(batches)] == [f"line {i:06d}" for i in range(10)]
        flood = lines(10, 60_000)
        with open(path, "ab") as file:
            file.write(flood)
        left_out, *records = await anext(batches)
        assert left_out == {"skipped": len(flood) - logtail._TURN}
        assert records[-1]["msg"] == "line 059999"
        first = int(records[0]["msg"].split()[1])
        assert [r["msg"] for r in records] == [f"line {i:06d}" for i in range(first, 60_000)]
        assert len(lines(first, 60_000)) <= logtail._TURN
        with open(path, "ab") as file:
            file.write(lines(60_000, 60_001))
        assert [r["msg"] for r in await anext(batches)] == ["line 060000"]


def test_a_file_that_logrotate_moved_is_read_until_the_logger_has_left_it(tmp_path: Path) -> None:
    asyncio.run(moved(tmp_path / "api.log"))


async def moved(path: Path) -> None:
    path.write_bytes(lines(0, 1))
    async with contextlib.aclosing(logtail.follow(str(path), 300)) as batches:  # type: ignore[type-var]
        await anext(batches)
        old = path.rename(path.with_name("moved"))
        path.touch()
        following = asyncio.ensure_future(anext(batches))
        for _ in range(10):  # until it has looked, and found nothing
            await asyncio.sleep(0)
        with open(old, "ab") as file:
            file.write(lines(1, 2))
        assert [r["msg"] for r in await following] == ["line 000001"]
        path.write_bytes(lines(2, 3))
        assert [r["msg"] for r in await anext(batches)] == ["line 000002"]


def test_a_pipe_in_the_place_of_a_log_is_not_read_and_the_file_that_comes_after_it_is(tmp_path: Path) -> None:
    asyncio.run(piped(tmp_path / "api.log"))


async def piped(path: Path) -> None:
    os.mkfifo(path)
    async with contextlib.aclosing(logtail.follow(str(path), 300)) as batches:  # type: ignore[type-var]
        assert await anext(batches) == []
        with pytest.raises(OSError, match="No such device or address"):  # nobody reads
            os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        path.unlink()
        path.write_bytes(lines(0, 1))
        assert [r["msg"] for r in await anext(batches)] == ["line 000000"]


def test_colors_are_no_characters_of_a_line(tmp_path: Path) -> None:
    asyncio.run(colored(tmp_path / "api.log"))


async def colored(path: Path) -> None:
    path.write_bytes(b"2026-11-23T14:02:31.104Z api.1 41210 out| \x1b[1;32mINFO\x1b[0m ready\n")
    async with contextlib.aclosing(logtail.follow(str(path), 300)) as batches:  # type: ignore[type-var]
        assert [r["msg"] for r in await anext(batches)] == ["INFO ready"]
