"""`make demo`: start the sample app, show that its workers share the port, say what to try next."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
HOME = os.path.join(ROOT, ".demo")
PYWORKER = os.path.join(os.path.dirname(sys.executable), "pyworker")
URL = "http://127.0.0.1:8000/api/whoami"
REQUESTS = 40


def pyworker(*arguments: str) -> int:
    """Run one command in the demo's own home and show it as it would be typed."""
    print(f"\n$ pyworker {' '.join(arguments)}", flush=True)
    return subprocess.run([PYWORKER, *arguments], env={**os.environ, "PYWORKER_HOME": HOME}, check=False).returncode


def spread() -> None:
    """Ask on fresh connections and count who answers."""
    answers: collections.Counter[int] = collections.Counter()
    for _ in range(REQUESTS):
        with urllib.request.urlopen(URL, timeout=10) as reply:
            answers[json.load(reply)["worker"]] += 1
    print(f"\n{REQUESTS} connections to {URL} were answered by")
    for worker, count in sorted(answers.items()):
        print(f"  worker {worker}  {'#' * count} {count}")


def daemon_pid() -> int:
    """Ask which process is the brain."""
    command = [PYWORKER, "daemon", "status", "--json"]
    asked = subprocess.run(command, env={**os.environ, "PYWORKER_HOME": HOME}, capture_output=True, check=True)
    return int(json.loads(asked.stdout)["pid"])


def main() -> int:
    if sys.argv[1:] == ["stop"]:
        return pyworker("daemon", "stop", "-y")
    code = pyworker("start", os.path.join("configs", "app.toml"))
    if code != 0:
        return code
    spread()
    pyworker("ps", "-w")
    daemon = daemon_pid()
    print(f"""
It is still running. Try:

  export PYWORKER_HOME={HOME}
  alias pyworker={PYWORKER}
  curl {URL}          who answers?
  pyworker logs -f                              its output, all workers together
  pyworker reload                               new code, no request lost
  kill -9 {daemon:<38}the daemon: the app does not notice
  make demo-stop                                the end""")
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
