"""A client that notes what it loses. Ends when its stdin closes, and prints one JSON report.

    python client.py PORT rate 300 /pid     300 new connections a second, whatever the answers take
    python client.py PORT keep 8 /pid       8 keep-alive connections that ask without a pause
    python client.py PORT kills 300 /pid    as rate; kills a process that has answered lately, every 0.25 s

A keep-alive connection that the server closes after `Connection: close` (or before our request has left) is not lost.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time

import uvloop

HANG = 1.0
GIVE_UP = 8.0


class Client:
    def __init__(self, port, kind, amount, path):
        self.port, self.kind, self.amount = port, kind, amount
        self.close = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        self.keep = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self.over = False
        self.failed = []
        self.hangs = 0
        self.cut = 0  # keep-alive connections that ended unannounced
        self.latencies = []  # (seconds since the epoch of its start, milliseconds)
        self.seen = {}  # pid: first and last time it answered on a new connection
        self.recent = []
        self.kills = 0
        self.first = asyncio.Event()
        self.tasks = set()

    async def exchange(self, reader, writer, request):
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        body = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 200"):
            raise OSError(head.split(b"\r\n")[0].decode())
        return b"connection: close" in head.lower(), body

    def note(self, began, wall):
        took = time.perf_counter() - began
        self.latencies.append((wall, took * 1000))
        self.first.set()
        if took > HANG:
            self.hangs += 1

    async def once(self):
        began, wall = time.perf_counter(), time.time()
        writer = None
        try:
            async with asyncio.timeout(GIVE_UP):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                _, body = await self.exchange(reader, writer, self.close)
            self.note(began, wall)
            if body.isdigit():
                pid = int(body)
                now = time.time()
                self.seen[pid] = (self.seen.get(pid, (now,))[0], now)
                self.recent = [*self.recent[-60:], pid]
        except (OSError, EOFError, ValueError, TimeoutError, IndexError) as error:
            self.failed.append(f"{type(error).__name__} {error}"[:80])
            if isinstance(error, TimeoutError) or time.perf_counter() - began > HANG:
                self.hangs += 1
        finally:
            if writer is not None:
                writer.close()

    async def rate(self):
        start, count = time.perf_counter(), 0
        while not self.over:
            count += 1
            wait = start + count / self.amount - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self.once())
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        while self.tasks:
            await asyncio.wait(self.tasks)

    async def kill(self):
        await self.first.wait()
        while not self.over:
            await asyncio.sleep(0.25)
            living = [pid for pid in set(self.recent[-30:]) if os.path.exists(f"/proc/{pid}")]
            if living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(living), signal.SIGKILL)
                    self.kills += 1

    async def lasting(self):
        while not self.over:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError as error:
                self.failed.append(f"{type(error).__name__} {error}"[:80])
                await asyncio.sleep(0.01)
                continue
            asked = 0
            try:
                while not self.over:
                    if reader.at_eof():
                        self.cut += asked > 0
                        break
                    began, wall = time.perf_counter(), time.time()
                    async with asyncio.timeout(GIVE_UP):
                        closes, _ = await self.exchange(reader, writer, self.keep)
                    asked += 1
                    self.note(began, wall)
                    if closes:
                        break
            except (OSError, EOFError, ValueError, TimeoutError, IndexError) as error:
                self.failed.append(f"keep-alive, request {asked}: {type(error).__name__} {error}"[:80])
                self.hangs += isinstance(error, TimeoutError)
                self.cut += asked > 0
            finally:
                writer.close()

    async def run(self):
        loop = asyncio.get_running_loop()

        def end():
            if not os.read(0, 100):
                self.over = True
                loop.remove_reader(0)

        loop.add_reader(0, end)
        if self.kind == "keep":
            jobs = [self.lasting() for _ in range(self.amount)]
        elif self.kind == "kills":
            jobs = [self.rate(), self.kill()]
        else:
            jobs = [self.rate()]
        running = [asyncio.create_task(job) for job in jobs]
        await self.first.wait()
        print("ready", flush=True)
        await asyncio.wait(running)
        report = {
            "answered": len(self.latencies), "failed": self.failed, "hangs": self.hangs, "cut": self.cut,
            "kills": self.kills, "latencies": self.latencies, "seen": self.seen,
        }  # fmt: skip
        print(json.dumps(report), flush=True)


uvloop.run(Client(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]).run())
