"""The apps of a world: their file, and what their code is like, which may change at any time."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

# how the code of an app may be; "hangs": its import does, "never": it is never ready
CODES = ("good", "good", "good", "broken", "never", "fails", "hangs", "crashy")
_TARGET = 'target = "web:app"\nbind = "unix:{home}/{name}.sock"\n'
KINDS = {
    "forked": _TARGET,
    "least": _TARGET + 'balance = "least-connections"\n',
    "direct": 'command = ["/bin/sleep", "9"]\n',
    "held": 'command = ["/bin/sleep", "9"]\nbalance = "shared"\nbind = "unix:{home}/{name}.sock"\n',
    "script": 'script = "script.py"\nbind = "unix:{home}/{name}.sock"\n',
    "job": 'command = ["/bin/sleep", "9"]\ncron = "* * * * *"\n',
}


class Apps:
    def __init__(self, rng: Random, home: str, names: list[str] | None) -> None:
        self.file = home + "/app.toml"
        self.code: dict[str, str] = {}  # app -> one of CODES
        self.is_broken = False  # the file
        self._home = home
        some = [name for name in KINDS if rng.random() < (0.8 if name == "forked" else 0.3)]
        self.workers = {name: 1 if name == "job" else rng.randrange(1, 4) for name in names or some or ["forked"]}
        self._options = {
            "cwd": f'"{home}"',
            "restart.policy": rng.choice(['"always"', '"always"', '"on-failure"', '"never"']),
            "restart.max_restarts": rng.choice([1, 2, 3, 10]),
            "reload.soak": rng.choice(['"0s"', '"10s"']),
            "reload.max_surge": rng.choice([1, 2, 3]),
            "reload.ready_timeout": '"20s"',
            "stop.drain_timeout": '"5s"',
            "stop.kill_timeout": '"3s"',
        }
        Path(home, "script.py").touch()
        Path(home, "web.py").touch()

    def write(self, *, broken: bool = False) -> None:
        self.is_broken = broken
        Path(self.file).write_text("[apps.\n" if broken else "".join(self._table(name) for name in self.workers))

    def _table(self, name: str) -> str:
        text = f"[apps.{name}]\nworkers = {self.workers[name]}\n" + KINDS[name].format(home=self._home, name=name)
        if "target" in text:
            text += f'python = "{sys.executable}"\n'
        many = "target" in text  # others are replaced one by one
        return text + "".join(f"{k} = {v}\n" for k, v in self._options.items() if many or k != "reload.max_surge")
