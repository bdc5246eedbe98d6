"""Worker: the HTTP server of asgi and wsgi apps.

`finder` and `prepare` find the libraries and are importable without them; everything else here needs httptools, so it
is imported only after `prepare` (which does it in the template, before the fork). It accepts nothing by itself:
the worker's accept loop hands each connection to `server.Server.serve`.
"""
