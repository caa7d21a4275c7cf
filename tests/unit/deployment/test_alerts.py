"""Prometheus' alerts ask only for what there is, and fire when they should."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from promql_checks import problems

REPOSITORY = Path(__file__).resolve().parents[3]
PROMETHEUS = REPOSITORY / "docker" / "prometheus"
[GROUP] = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
CASES = Path(__file__).parent / "alerts_test.yaml"


@pytest.mark.parametrize("rule", GROUP["rules"], ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_exist(rule: dict[str, str]) -> None:
    assert problems(rule["expr"]) == []


@pytest.mark.parametrize("rule", GROUP["rules"], ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_how_bad_it_is(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description"}


def test_every_alert_is_shown_to_fire_and_to_keep_silent() -> None:
    shown: dict[bool, set[str]] = {True: set(), False: set()}
    for test in yaml.safe_load(CASES.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            shown["exp_alerts" in case].add(case["alertname"])
    alerts = {rule["alert"] for rule in GROUP["rules"]}
    assert shown == {True: alerts, False: alerts}


def promtool(*arguments: str) -> str:
    """Run Prometheus' own checker; the test is skipped where there is none, but not in CI."""
    if shutil.which("promtool") is None:
        reason = "promtool not found; install it: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_alerts_fire_when_they_should() -> None:
    assert "SUCCESS" in promtool("test", "rules", str(CASES))


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    """With the paths that ``compose.yaml`` mounts."""
    text = (PROMETHEUS / "prometheus.yaml").read_text()
    (tmp_path / "prometheus.yaml").write_text(text.replace("/etc/prometheus", str(PROMETHEUS)))
    assert "17 rules found" in promtool("check", "config", str(tmp_path / "prometheus.yaml"))
