"""CLI: the names of all commands, other words for them, and what to say to words that are none. Literals, no imports."""

from __future__ import annotations

_HERE = "pyworker.cli.commands."
# name -> module with a `cmd`, short help
COMMANDS: dict[str, tuple[str, str]] = {
    "start": (_HERE + "start", "Start an app, and the daemon when none runs."),
    "run": (_HERE + "run", "Run in the foreground: containers, service managers."),
    "stop": (_HERE + "stop", "Stop apps or single workers."),
    "restart": (_HERE + "restart", "Stop all workers, start all (reload has no gap)."),
    "reload": (_HERE + "reload", "New code in, no request lost."),
    "scale": (_HERE + "scale", "More or fewer workers: scale api=8."),
    "delete": (_HERE + "delete", "Stop apps and forget them."),
    "ps": (_HERE + "ps", "What runs."),
    "top": (_HERE + "top", "Watch the apps, full screen."),
    "describe": (_HERE + "describe", "All about one app."),
    "logs": (_HERE + "logs", "What the workers print."),
    "events": (_HERE + "events", "What happened."),
    "stack": (_HERE + "stack", "Where the threads of a worker are right now."),
    "send": (_HERE + "send", "A message to workers: send api '{...}'."),
    "wait": (_HERE + "wait", "Wait until apps are ready or stopped."),
    "metrics": (_HERE + "metrics", "Figures for Prometheus."),
    "web": (_HERE + "web", "A dashboard in the browser."),
    "check": (_HERE + "check", "Check a config file; start nothing."),
    "init": (_HERE + "init", "Write an app.toml for what is in a folder."),
    "import": (_HERE + "import_", "app.toml from pm2, supervisor, gunicorn, uWSGI, systemd, a Procfile."),
    "diff": (_HERE + "diff", "What a reload would change."),
    "config": (_HERE + "config", "A config with every default, and where it comes from."),
    "schema": (_HERE + "schema", "The JSON Schema of config files."),
    "export": (_HERE + "export", "For systemd, Kubernetes, Compose, Nomad, Docker."),
    "daemon": (_HERE + "daemon", "The daemon: status, start, stop, upgrade."),
    "startup": (_HERE + "startup", "Start the daemon at boot: systemd, OpenRC."),
    "doctor": (_HERE + "doctor", "Look for what is wrong with this machine."),
    "completion": (_HERE + "completion", "Completion for bash, zsh and fish."),
}
GROUPS = {
    "Run": ("start", "run", "stop", "restart", "reload", "scale", "send", "delete"),
    "Look": ("ps", "describe", "logs", "events", "stack", "wait", "metrics", "top", "web"),
    "Config": ("init", "import", "check", "diff", "config", "schema", "export"),
    "Machine": ("daemon", "startup", "doctor", "completion"),
}
ALIASES = {
    "ls": "ps", "list": "ps", "status": "ps", "show": "describe", "info": "describe", "monit": "top", "rm": "delete",
    "del": "delete",
}  # fmt: skip
# pm2's words that do here what they did there; not in the list of commands
HIDDEN = {
    "save": _HERE + "words:save",
    "dump": _HERE + "words:save",
    "resurrect": _HERE + "words:resurrect",
    "flush": _HERE + "words:flush",
    "kill": _HERE + "words:kill",
}
_BACK = "put the older code back, then: pyworker reload NAME; --abort goes back within its soak"
# words of other programs: what to say here
ELSEWHERE = {
    **dict.fromkeys(("rollback", "undo"), _BACK),
    "rollout": "pyworker reload NAME waits until the new workers serve",
    "log": "pyworker logs",
    "tail": "pyworker logs -f",
    "up": "pyworker start",
    "down": "pyworker stop all",
    "id": "apps go by name here, workers by name and number: api.2",
    "pid": "pyworker ps -w --json has the pid of every worker",
    "env": "pyworker config env NAME",
    "jlist": "pyworker ps --json",
    **dict.fromkeys(("dashboard", "dash"), "pyworker top, or pyworker web in a browser"),
    "startOrReload": "pyworker start FILE, then pyworker reload NAME",
    "startOrRestart": "pyworker start FILE, then pyworker restart NAME",
    "update": "pm2's: pyworker daemon upgrade; supervisor's: pyworker diff, then pyworker reload NAME",
    "link": "there is no service to link to; pyworker web, pyworker metrics",
    **dict.fromkeys(("set", "get"), "settings are in app.toml: pyworker config"),
    "pull": "pyworker does not deploy: git pull, then pyworker reload NAME",
    "inspect": "pyworker stack NAME, or pyworker describe NAME",
    "serve": "files are best served by nginx; or: pyworker start -- python3 -m http.server 8080",
    "ecosystem": "pyworker init writes app.toml",
    "reset": "counters are kept until the app is deleted: pyworker delete NAME, and start it again",
    **dict.fromkeys(("sendSignal", "signal"), "kill -s SIGNAL PID; the pids: pyworker ps -w"),
    "logrotate": "logs are rotated: logs.max_size and logs.max_files in app.toml",
    "reloadLogs": "logs are rotated by pyworker itself",
    "install": "there are no modules: logs are rotated, pyworker metrics is for Prometheus",
    "deploy": "pyworker does not deploy: copy the code, then pyworker reload NAME",
    "ping": "pyworker daemon status",
    "report": "pyworker doctor --report",
    "trigger": "pyworker send NAME MESSAGE",
    **dict.fromkeys(("attach", "fg"), "pyworker logs -f NAME"),
    "clear": "pyworker flush NAME",
    **dict.fromkeys(("shutdown", "quit"), "pyworker daemon stop"),
    "add": "pyworker start FILE",
    "remove": "pyworker delete NAME",
    "incr": "pyworker scale NAME +1",
    "decr": "pyworker scale NAME -1",
    "stats": "pyworker top --once",
    "enable": "pyworker startup",
    **dict.fromkeys(("disable", "unstartup"), "pyworker startup --remove"),
    **dict.fromkeys(
        ("python", "python3", "node", "npm", "uvicorn", "gunicorn", "celery"),
        "a command stands behind --: pyworker start -- COMMAND; an app needs no server: pyworker start MODULE:APP",
    ),
    "exec": "pyworker config env NAME shows an app's environment",
    "version": "pyworker --version",
    "reread": "pyworker diff, then pyworker reload NAME",
    **dict.fromkeys(
        ("daemon restart", "daemon reload"), "pyworker daemon upgrade --force   starts it anew; workers stay"
    ),
    "daemon kill": "pyworker daemon stop   the apps, too",
    "daemon logs": "pyworker doctor says what is amiss; its log is logs/pyworker.log in the home that pyworker daemon status shows",
}
# options of other programs; of a command that does not have ours, the next is said. What app.toml has: canonical.line_of
OPTIONS_ELSEWHERE = {
    name: hints
    for names, hints in (
        (("-p", "--host", "--port", "--http", "--http-socket"), ("-b HOST:PORT", "--listen HOST:PORT")),
        (("--uds",), ("-b unix:PATH",)),
        (("--reload",), ("--watch",)),
        (("-i", "--instances", "--processes"), ("-w N, or -w auto",)),
        (("--app-dir", "--chdir"), ("--cwd DIR",)),
        (
            ("-d", "-D", "--daemon", "--daemonize"),
            (
                "--interval TIME",
                "start returns when the app is ready, and it goes on; pyworker run stays in the foreground",
            ),
        ),
        (("--no-daemon",), ("pyworker run FILE stays in the foreground",)),
        (("--lines", "--tail"), ("-n N",)),
        (("--grep", "--filter"), ("--include RE",)),
        (("-o", "--output", "--format"), ("--json",)),
        (("--no-color", "--no-colour"), ("--color never",)),
        (("-b", "--bind"), ("--listen HOST:PORT",)),
        (("--state",), ("--for ready|stopped|gen=N",)),
        (("--dry-run",), ("pyworker diff NAME shows what a reload would change",)),
        (("--undo",), (_BACK,)),
        (
            ("-f", "--force"),
            (
                "--now does not wait for open requests, -y does not ask",
                "-y does not ask; a reload needs no change of a file",
            ),
        ),
        (("--truncate",), ("pyworker flush NAME empties the log",)),
        (("--canary",), ("the first new worker is alone until it is ready and passes its check, always",)),
        (("--watch",), ("pyworker top is what goes on showing; start and run have --watch, for files",)),
        (("--listen",), ("pyworker web serves /metrics, and pyworker run has --probe HOST:PORT",)),
        (("-a", "--all"), ("`all` is a name: pyworker stop all; ps shows everything anyway",)),
        (("--update-env",), ("pyworker reload NAME reads the environment again, always",)),
        (("-k", "--worker-class"), ("ASGI and WSGI are told apart; a WSGI worker has --threads N",)),
        (
            ("--preload",),
            ("the app is imported once and forked, unless told not to; a reload brings new code all the same",),
        ),
        (("-c", "--config"), ("pyworker import FILE makes an app.toml of it",)),
        (("--log-level",), ("--level LEVEL", "the level is the app's own: its logging, or a variable of -e")),
        (("--interpreter",), ("another program: pyworker start -- PROGRAM ARGUMENTS",)),
        (
            ("--exp-backoff-restart-delay", "--restart-delay"),
            ("what keeps failing is waited for longer each time, always",),
        ),
    )
    for name in names
}
