"""A real redis-server for one test: on a Unix socket and a port of its own, nothing on disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from tests.support.pyworker import free_port
from tests.support.wait import wait_until


class RedisServer:
    """Can be stopped and started again on the same port; what it held is gone then."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="rs-")
        self.port = free_port()
        self.url = f"redis://:s3cret@127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        import redis

        program = shutil.which("redis-server")
        assert program is not None
        self._process = subprocess.Popen(
            [
                program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no",
                "--dir", self.folder, "--requirepass", "s3cret", *options,
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder,
        )  # fmt: skip

        def answers() -> bool:
            client = redis.Redis.from_url(self.url)
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:
                return False
            finally:
                client.close()

        wait_until(answers, 20, "redis-server to answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed (apt install redis-server)")
    pytest.importorskip("redis")
    server = RedisServer()
    try:
        server.start()
        yield server
    finally:
        server.stop()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(server.folder)
        assert not os.path.exists(server.folder)
