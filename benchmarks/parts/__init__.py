"""One module a group of measures; each has `run(bench)`. The order of `ORDER` is that of the report."""

ORDER = (
    "limits", "keepalive", "wsgi", "files", "conns", "lasting", "kill", "kills", "reload", "heavyreload", "memory", "idle",
    "start", "apps", "logs", "fork", "dispatcher", "growth",
)  # fmt: skip
