"""The tiny app, in ASGI and WSGI: `/pid` says who answers, `/gc` collects, `/file` (WSGI) is a file, everything else is a constant."""

import gc
import os
import tempfile

FILE_SIZE = 100 << 20
BODY = b"Hello, world!\n"
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"14")]
START = {"type": "http.response.start", "status": 200, "headers": HEADERS}
END = {"type": "http.response.body", "body": BODY}
WSGI_HEADERS = [("Content-Type", "text/plain"), ("Content-Length", "14")]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] == "/":
        await send(START)
        await send(END)
        return
    if scope["path"] == "/gc":
        gc.collect()
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


def wsgi(environ, start_response):
    if environ["PATH_INFO"] == "/":
        start_response("200 OK", WSGI_HEADERS[:])
        return [BODY]
    if environ["PATH_INFO"] == "/file":
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the server closes it
        file.truncate(FILE_SIZE)
        start_response("200 OK", [("Content-Length", str(FILE_SIZE))])
        wrapper = environ.get("wsgi.file_wrapper")
        return wrapper(file, 65536) if wrapper else iter(lambda: file.read(65536), b"")
    if environ["PATH_INFO"] == "/gc":
        gc.collect()
    body = b"%d" % os.getpid()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
