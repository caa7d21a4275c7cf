"""Grafana's dashboard asks only for what there is, and is provisioned with its data source."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from echolm.telemetry import METRICS
from promql_checks import SERIES, parse, problems, selectors

DOCKER = Path(__file__).resolve().parents[3] / "docker"
GRAFANA = DOCKER / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "echolm.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(p["title"], t["expr"]) for p in PANELS for t in p["targets"]]
ELSEWHERE = {
    "echolm_conversation_answers_total",
    "echolm_retrieval_batches_total",
    "echolm_learning_events_removed_total",
    "echolm_llm_cancelled_total",
    "echolm_llm_failed_total",
    "echolm_llm_in_flight",
    "echolm_load_table_degraded",
    "echolm_judge_seconds_total",
    "echolm_refused_calls_total",
    "echolm_replay_seconds_total",
    "echolm_stored_answers_total",
}
"""Metrics for which a look at the endpoint will do."""


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_a_panel_asks_for_metrics_that_exist(title: str, query: str) -> None:
    assert problems(query) == [], title


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("sum(rate(echolm_nonsense_total[5m]))", "there is no metric echolm_nonsense_total"),
        ('echolm_load{tenant="a"}', "echolm_load has no label tenant"),
        ("sum by (part) (echolm_load)", "no metric has part"),
        ("rate(echolm_load[5m])", "echolm_load is a gauge"),
        ("echolm_offloaded_total", "echolm_offloaded_total is a counter"),
    ],
)
def test_the_check_finds_what_is_wrong(query: str, problem: str) -> None:
    assert any(problem in message for message in problems(query))


def test_the_dashboard_shows_all_that_matters() -> None:
    shown = {SERIES[s.name].name for _, query in QUERIES for s in selectors(parse(query))}
    assert shown == set(METRICS) - ELSEWHERE


def test_a_legend_names_labels_that_its_query_keeps() -> None:
    for panel in PANELS:
        for series in panel["targets"]:
            for label in re.findall(r"{{(\w+)}}", series["legendFormat"]):
                kept = re.search(rf"by \([^)]*\b{label}\b", series["expr"])
                assert kept or " by " not in series["expr"], (panel["title"], label)


def test_panels_do_not_overlap() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        g = panel["gridPos"]
        assert g["x"] + g["w"] <= 24
        return {
            (x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])
        }

    assert len({p["id"] for p in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel, other in combinations(DASHBOARD["panels"], 2):
        assert not cells(panel) & cells(other), (panel["title"], other["title"])


def test_every_panel_is_explained_and_takes_the_chosen_data_source() -> None:
    variables = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    for panel in PANELS:
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_grafana_is_provisioned_with_prometheus_and_the_dashboard() -> None:
    def provisioned(kind: str) -> Any:
        [file] = (GRAFANA / "provisioning" / kind).glob("*.yaml")
        return yaml.safe_load(file.read_text())

    [source] = provisioned("datasources")["datasources"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert source["url"].removeprefix("http://").split(":")[0] in compose["services"]
    [provider] = provisioned("dashboards")["providers"]
    mounts = [str(volume) for volume in compose["services"]["grafana"]["volumes"]]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts
