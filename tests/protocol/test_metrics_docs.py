"""docs/metrics.md and the Grafana dashboard speak of metrics that there are, and of all of them."""

from __future__ import annotations

import json
import pathlib
import re

from pyworker.protocol.metrics import METRICS, render
from tests.cli import documents

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_page_lists_every_metric() -> None:
    page = (DOCS / "metrics.md").read_text()
    for name, (kind, words) in METRICS.items():
        assert f"| `{name}` | {kind} | {words} |" in page


def test_the_alerts_ask_only_for_metrics_that_exist_and_states_and_codes_that_are_written() -> None:
    rules = (DOCS / "metrics.md").read_text().split("## Alerts")[1].split("```")[1]
    assert {*re.findall(r"pyworker_[a-z_]+", rules)} <= METRICS.keys()
    text = render(documents.ps())
    for label in re.findall(r'(?:state|code)="\w+"', rules):
        assert label in text


def test_the_dashboard_asks_only_for_metrics_that_exist() -> None:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text())
    asked = set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            asked |= set(re.findall(r"pyworker_[a-z_]+", target["expr"]))
            assert target["expr"].count("(") == target["expr"].count(")")
    known = METRICS.keys() | {f"{n}_bucket" for n, (kind, _) in METRICS.items() if kind == "histogram"}
    assert asked <= known
    assert len(asked) > 8
