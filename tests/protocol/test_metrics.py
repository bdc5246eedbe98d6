"""The text is read back with Prometheus' own parser, and every family by the rules that promtool checks."""

from __future__ import annotations

import re
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyworker.protocol.figures import bound
from pyworker.protocol.metrics import METRICS, STATES, down, render
from tests.cli import documents


def families(document: dict[str, Any]) -> dict[str, Any]:
    text = render(document)
    assert text.endswith("\n")
    return {family.name: family for family in text_string_to_metric_families(text)}


def values(family: Any, **labels: str) -> list[float]:
    return [s.value for s in family.samples if labels.items() <= s.labels.items()]


def test_names_types_and_units_follow_the_conventions() -> None:
    for name, (kind, words) in METRICS.items():
        assert re.fullmatch(r"pyworker_[a-z][a-z0-9_]*[a-z]", name)
        assert name.endswith("_total") == (kind == "counter")
        assert not re.search(r"_(ms|millis|milliseconds|kb|mb|percent|minutes)\b", name)
        assert words.endswith(".")
        assert words.count("\n") == 0
    kinds = {f.type for f in families(documents.ps()).values()}
    assert kinds == {"gauge", "counter", "histogram"}


def test_no_series_is_written_twice_and_every_family_is_declared() -> None:
    seen = set()
    for family in text_string_to_metric_families(render(documents.ps())):
        assert family.documentation
        assert family.type != "unknown"
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in seen
            seen.add(key)
    assert len(seen) > 100


def test_the_histogram_is_cumulative_and_ends_with_all() -> None:
    family = families(documents.ps())["pyworker_http_request_duration_seconds"]
    buckets = [
        (s.labels["le"], s.value) for s in family.samples if s.name.endswith("_bucket") and s.labels["app"] == "api"
    ]
    counts = [count for _, count in buckets]
    assert counts == sorted(counts)
    assert [float(le) for le, _ in buckets] == sorted(float(le) for le, _ in buckets)
    assert buckets[-1] == ("+Inf", 284000)
    assert dict(buckets)[f"{bound(12):g}"] == 284000 - 5680
    assert [s.value for s in family.samples if s.name.endswith("_count") and s.labels["app"] == "api"] == [284000]


def test_two_workers_of_one_slot_are_one_series() -> None:
    document = documents.ps()
    document["apps"] = [documents.app("api", pool=[documents.worker(1, 10), documents.worker(1, 11, "draining")])]
    found = families(document)
    assert values(found["pyworker_worker_memory_rss_bytes"]) == [2 * 92274688]
    assert values(found["pyworker_worker_up"]) == [1]


def test_exactly_one_state_is_set() -> None:
    document = documents.ps()
    document["apps"].append(documents.app("nightly", state="scheduled"))
    states = families(document)["pyworker_app_state"]
    for app, state in (("api", "running"), ("mail", "failed"), ("hooks", "degraded"), ("nightly", "scheduled")):
        assert sum(values(states, app=app)) == 1
        assert values(states, app=app, state=state) == [1]
        assert len(values(states, app=app)) == len(STATES)


def test_what_is_not_known_is_left_out_not_nought() -> None:
    document = documents.ps()
    document["apps"] = [documents.app("jobs", http=None, queue=[None], pool=[documents.worker(1, 1, cpu_s=None)])]
    found = families(document)
    assert "pyworker_http_requests" not in found
    assert "pyworker_listen_queue_connections" not in found
    assert "pyworker_worker_cpu_seconds" not in found
    assert "pyworker_worker_requests_in_flight" not in found  # a command counts none


@pytest.mark.parametrize(("config", "wanted"), [({"changed": True}, [1]), ({"changed": False}, [0]), (None, None)])
def test_a_config_file_that_has_changed_is_told(config: dict[str, bool] | None, wanted: list[float] | None) -> None:
    document = documents.ps()
    document["apps"] = [{**documents.app("api"), "config": config}]
    family = families(document).get("pyworker_app_config_changed")
    assert (None if family is None else values(family, app="api")) == wanted


def test_a_stopped_app_misses_no_workers() -> None:
    document = documents.ps()
    workers = {"want": 2, "ready": 0, "total": 0}
    document["apps"] = [documents.app(state, state=state, workers=workers, pool=[]) for state in ("stopped", "failed")]
    wanted = families(document)["pyworker_app_workers_wanted"]
    assert (values(wanted, app="stopped"), values(wanted, app="failed")) == ([0], [2])


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({"state": "running"}, 0), ({"state": "running", "notes": ["not reloaded (cron): no disk"]}, 1), ({"state": "scheduled"}, 1),
        ({"state": "failed", "notes": ["x"]}, 2), ({"state": "starting", "backoff": {"try": 3, "max": 10, "in_s": 4.2}}, 1),
    ],
)  # fmt: skip
def test_what_ps_says_of_an_app_can_be_alerted_on(more: dict[str, Any], count: int) -> None:
    document = documents.ps()
    failure = {"message": "exit code 1", "traceback": "", "hint": "", "at": ""}
    document["apps"] = [documents.app("api", last_failure=failure, **more)]
    assert values(families(document)["pyworker_app_notes"], app="api") == [count]


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "ü€", "\udc80"])
def test_any_label_survives(text: str) -> None:
    document = documents.ps()
    document["apps"] = [documents.app("api", target=text)]
    (info,) = families(document)["pyworker_app_info"].samples
    assert info.labels["target"] == text.encode("utf-8", "backslashreplace").decode()


def test_no_apps_and_no_daemon_are_metrics_too() -> None:
    assert families({"v": 1, "apps": []})["pyworker_up"].samples[0].value == 1
    (family,) = text_string_to_metric_families(down())
    assert (family.name, family.samples[0].value) == ("pyworker_up", 0)
