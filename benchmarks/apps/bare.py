"""The limit: httptools on uvloop, a constant for an answer; two forks on one listener. No app, no framework.

    python bare.py PORT WORKERS
"""

import asyncio
import os
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


async def serve(sock):
    server = await asyncio.get_running_loop().create_server(Bare, sock=sock)
    await server.serve_forever()


sock = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=2048)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
children = []
for _ in range(int(sys.argv[2])):
    pid = os.fork()
    if pid == 0:
        uvloop.run(serve(sock))
        os._exit(0)
    children.append(pid)


def end(*_):
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


signal.signal(signal.SIGTERM, end)
os.wait()
