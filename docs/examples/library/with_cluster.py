"""Sharing a port, way 4: cluster. The program is an ordinary server; one call makes it several.

The primary runs the same file again in each worker, where `cluster.run` returns at once. Workers that die are replaced.
"""

import http.server
import os
import sys

from pyworker import cluster

cluster.run(args=sys.argv[1:], workers=2)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"%d" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
