"""[app.metrics]: what the figures of the user's own app need, with prometheus_client itself."""

from __future__ import annotations

import os
import re

from tests.support.pyworker import Pyworker, kill
from tests.support.wait import wait_until

APP = """\
import os
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess

SERVED = Counter("served", "x")
LIVE = Gauge("live", "x", multiprocess_mode="liveall")

def app(environ, start_response):
    start_response("200 OK", [])
    if environ["PATH_INFO"] == "/otel":
        return [os.environ["OTEL_RESOURCE_ATTRIBUTES"].encode()]
    if environ["PATH_INFO"] == "/metrics":
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return [generate_latest(registry)]
    SERVED.inc()
    LIVE.set(1)
    return [b"ok"]
"""


def served(text: str) -> float:
    found = re.search(r"^served_total (.*)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def live(text: str) -> set[str]:
    return set(re.findall(r'^live\{pid="(\w+)"\} 1', text, re.MULTILINE))  # the template has one, too: 0


def test_workers_add_up_the_dead_leave_and_a_new_start_begins_at_nothing(pw: Pyworker) -> None:
    pw.api(APP, tables='[app.metrics]\nprometheus = true\nopentelemetry = true\n[app.env]\nOTEL_SERVICE_NAME = "shop"')
    pw.ok("start", "app.toml")
    folder = os.path.join(pw.home, "state", "api", "prometheus")
    count = 0
    while len(live(pw.get("/metrics"))) < 2:
        count += 1
        pw.get("/")
    assert served(pw.get("/metrics")) == count
    assert live(pw.get("/metrics")) == {"w1", "w2"}
    files = sorted(os.listdir(folder))

    kill(pw.pids()[0])
    pw.wait_steady()
    wait_until(lambda: live(pw.get("/metrics")) == {"w2"}, 30, "the dead worker's gauge to leave")
    assert served(pw.get("/metrics")) == count  # what it counted stays
    while len(live(pw.get("/metrics"))) < 2:
        count += 1
        pw.get("/")
    assert served(pw.get("/metrics")) == count  # and its successor goes on
    assert sorted(os.listdir(folder)) == files

    pw.ok("reload", "api")
    pw.wait_steady()
    for _ in range(4):
        count += 1
        pw.get("/")
    assert served(pw.get("/metrics")) == count
    pw.ok("reload", "api")
    pw.wait_steady()
    names = {file.rpartition("_")[2] for file in os.listdir(folder)} - {".slots"}
    bound = {f"w{slot}{letter}.db" for slot in range(3) for letter in ("", "b")}
    assert names <= bound | {"w0c.db"}, names  # the first template may still be leaving when the third comes

    pw.ok("scale", "api=1")
    pw.wait_steady()
    wait_until(lambda: len(live(pw.get("/metrics"))) <= 1, 30, "the gauge of the slot that is no more to leave")
    assert served(pw.get("/metrics")) == count

    attributes = dict(part.split("=") for part in pw.get("/otel").split(","))
    assert attributes["pyworker.app"] == "api"
    assert attributes["service.instance.id"] in {"api.1", "api.2"}
    assert "service.name" not in attributes  # the app's own says it

    pw.ok("stop", "api")
    assert os.listdir(folder)
    pw.ok("start", "api")
    assert served(pw.get("/metrics")) == 0.0
