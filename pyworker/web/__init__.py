"""Web: the dashboard in the browser, a process of its own (extra `pyworker[web]`). A client of the daemon like the CLI.

`control.py` asks the daemon, `history.py` keeps the last hour, `hub.py` polls and tells who looks, `logtail.py` reads
log files, `guard.py` says who may ask, `app.py` has the routes, `page/` what the browser gets. Nothing waits for it."""
