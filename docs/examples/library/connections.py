"""Sharing a port, way 3: the primary accepts and passes connections one by one. It decides who gets which.

Strict turns, or any rule you like (here: by turns). A connection whose child has died first goes to the next child.
"""

import asyncio
import os
import socket
import sys

from pyworker import child_process, process


async def answer(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=connection)
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.0 200 OK\r\n\r\n%d" % os.getpid())
    await writer.drain()
    writer.close()


async def serve() -> None:
    """The child: serves what it is handed."""
    parent_gone = asyncio.Event()
    process.on("disconnect", parent_gone.set)

    @process.on("message")
    async def take(message: str, connection: socket.socket) -> None:
        await answer(connection)

    process.send("ready")
    await parent_gone.wait()


async def main(port: int) -> None:
    children = [child_process.fork(__file__) for _ in range(2)]
    for messages in [child.messages() for child in children]:
        await anext(messages)  # "ready"
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.setblocking(False)
        print("ready", flush=True)
        while children:
            connection, _ = await loop.sock_accept(listener)
            while children:
                child = children.pop(0)
                try:
                    await child.deliver("yours", connection)  # returns when the child has it
                except child_process.HandleNotDeliveredError:
                    continue  # it died: the connection is still open here, for the next one
                children.append(child)
                break


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])) if process.connected is False else serve())
