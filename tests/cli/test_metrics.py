from __future__ import annotations

import json

from prometheus_client.parser import text_string_to_metric_families

from pyworker.protocol.metrics import METRICS
from tests.cli import documents
from tests.support.cli import run, run_on_terminal
from tests.support.fake_control import FakeControl, replies


def test_stdout_is_what_a_scraper_reads(home: str) -> None:
    document = documents.ps()
    document["apps"][0]["pool"][0]["pss_bytes"] = 50000000  # the daemon has had time for one of them
    with FakeControl(home, {"ps": replies(document)}) as daemon:
        found = run("metrics", "api", "jobs", home=home, LC_ALL="C")
    assert (found.code, found.err) == (0, "")
    assert (daemon.requests[0].selectors, daemon.requests[0].pss) == (("api", "jobs"), True)
    assert found.out.count("\npyworker_worker_memory_pss_bytes{") == 1
    names = {family.name for family in text_string_to_metric_families(found.out)}
    assert names == {name.removesuffix("_total") for name in METRICS}


def test_a_config_file_cannot_steer_the_terminal(home: str) -> None:
    document = documents.ps()
    document["apps"][0]["target"] = "\x1b[2J"
    with FakeControl(home, {"ps": replies(document)}):
        found = run("metrics", home=home)
        raw = run_on_terminal("metrics", home=home).raw
    (info,) = (f for f in text_string_to_metric_families(found.out) if f.name == "pyworker_app_info")
    assert "\x1b[2J" in {sample.labels["target"] for sample in info.samples}
    assert r'target="\x1b[2J"' in raw
    assert "\x1b[2J" not in raw


def test_json_holds_the_text(home: str) -> None:
    with FakeControl(home, {"ps": replies(documents.ps())}):
        document = json.loads(run("metrics", "--json", home=home).out)
    assert document["v"] == 1
    assert "pyworker_up 1" in document["text"]


def test_without_a_daemon_it_is_an_error_and_stdout_is_empty(home: str) -> None:
    found = run("metrics", home=home)
    assert (found.code, found.out) == (69, "")
