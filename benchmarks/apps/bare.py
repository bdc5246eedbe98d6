"""The limit: httptools on uvloop, a constant for an answer; forks on one listener. No app, no framework.

    python bare.py PORT WORKERS [turns]

libuv accepts as many connections as there are, and who comes first has them. With `turns` the forks take strict turns, one connection
for each wake-up (EPOLLEXCLUSIVE, re-armed), as a server in Python must that shares them evenly without a process in between.
"""

import asyncio
import os
import select
import signal
import socket
import sys

import httptools
import uvloop

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 14\r\n\r\nHello, world!\n"
LAST = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 14\r\nconnection: close\r\n\r\nHello, world!\n"


class Bare(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        self.parser = httptools.HttpRequestParser(self)

    def connection_lost(self, exc):
        self.parser = None

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_message_complete(self):
        if self.parser.should_keep_alive():
            self.transport.write(ANSWER)
        else:
            self.transport.write(LAST)
            self.transport.close()


def epoll_of_this_process():
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventpoll]":
                return select.epoll.fromfd(os.dup(int(name)))
        except FileNotFoundError:
            continue
    raise SystemExit("no epoll")


async def take_turns(sock):
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    opening = set()

    def accept():
        try:
            connection, _ = sock.accept()
        except BlockingIOError:
            return
        epoll.unregister(sock.fileno())
        epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
        task = loop.create_task(loop.connect_accepted_socket(Bare, connection))
        opening.add(task)
        task.add_done_callback(opening.discard)

    loop.add_reader(sock.fileno(), accept)
    await asyncio.sleep(0.05)  # uvloop tells the kernel of a new reader when it goes to wait
    epoll = epoll_of_this_process()
    epoll.unregister(sock.fileno())
    epoll.register(sock.fileno(), select.EPOLLIN | select.EPOLLEXCLUSIVE)
    while True:
        await asyncio.sleep(1)
        accept()


async def serve(sock):
    server = await asyncio.get_running_loop().create_server(Bare, sock=sock)
    await server.serve_forever()


sock = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
children = []
for _ in range(int(sys.argv[2])):
    pid = os.fork()
    if pid == 0:
        uvloop.run(take_turns(sock) if sys.argv[3:] == ["turns"] else serve(sock))
        os._exit(0)
    children.append(pid)


def end(*_):
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


signal.signal(signal.SIGTERM, end)
os.wait()
