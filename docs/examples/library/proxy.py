"""Sharing a port, way 1: a proxy. The primary listens and relays each connection to a child's own port.

Works with every program. Each byte is copied twice, and each connection costs two sockets more.
"""

import asyncio
import itertools
import sys

from pyworker import child_process, process


async def serve() -> None:
    """The child: its own port, told to the parent."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    process.send({"port": server.sockets[0].getsockname()[1]})
    parent_gone = asyncio.Event()
    process.on("disconnect", parent_gone.set)
    await parent_gone.wait()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    import os

    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
    await writer.drain()
    writer.close()


async def main(port: int) -> None:
    children = [child_process.fork(__file__) for _ in range(2)]
    messages = [child.messages() for child in children]
    ports = [(await anext(each))["port"] for each in messages]
    turns = itertools.cycle(ports)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_child, to_child = await asyncio.open_connection("127.0.0.1", next(turns))
        await asyncio.gather(copy(reader, to_child), copy(from_child, writer))

    async with await asyncio.start_server(relay, "127.0.0.1", port) as server:
        print("ready", flush=True)
        await server.serve_forever()


async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            target.write(data)
            await target.drain()
    finally:
        target.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])) if process.connected is False else serve())
