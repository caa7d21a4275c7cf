"""A real Prometheus reads a real server: its metrics are as documented, the dashboard has data."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from echolm.serving import Endpoints
from echolm.telemetry import METRICS, SECONDS_BUCKETS
from echolm_client import Client, InvalidRequest, Message
from echolm_lab.tasks import Workload
from triton_calls import eventually

pytestmark = pytest.mark.timeout(180)

DOCKER = Path(__file__).resolve().parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "echolm.json").read_text())
MINE: dict[str, Any] = {"tenant": "test-prometheus", "max_tokens": 200}
REQUEST, OTHER = (item.text for item in Workload(seed=0).stream(2, seed=4712))
NOT_HERE = re.compile(
    "echolm_(degraded|failed|judge|judgements|replay|replays|stored_comparisons)_"
)
"""Metrics of what does not happen here, or not surely."""


@dataclass(frozen=True)
class Prometheus:
    url: str

    def ask(self, path: str, **arguments: str) -> Any:
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as page:
            answer = json.load(page)
        assert answer["status"] == "success"
        return answer["data"]

    def values(self, query: str) -> list[float]:
        return [float(row["value"][1]) for row in self.ask("query", query=query)["result"]]


def work(endpoints: Endpoints) -> None:
    """Requests to each LLM, streams, ratings, and one that is refused."""
    with Client(endpoints.grpc_url, metrics_url=endpoints.metrics_url, timeout=60) as client:
        for llm in ("large_llm", "small_llm", "auto"):
            answer = client.generate(REQUEST, llm=llm, **MINE)
            client.rate(answer, 0.5)
            with client.stream(OTHER, llm=llm, **MINE) as stream:
                assert "".join(stream)
        # Whatever other tests have taught of examples, some are chosen now and then.
        assert eventually(lambda: client.generate(REQUEST, llm="small_llm", **MINE).example_ids, 60)
        # The repeats are answered from the store: here an LLM is chosen.
        client.generate(REQUEST, cache_control="no-examples", **MINE)
        conversation: list[Message] = [{"role": "user", "content": REQUEST}]
        for _ in range(3):  # the router may learn of an answer after the next request comes
            said = client.generate(messages=conversation, **MINE).text
            conversation.append({"role": "assistant", "content": said})
            conversation.append({"role": "user", "content": OTHER})
        with pytest.raises(InvalidRequest):
            client.rate("forged", 1.0)


@pytest.fixture(scope="module")
def busy(server: Endpoints) -> Endpoints:
    """The server, after some work."""
    work(server)
    return server


@pytest.fixture(scope="module")
def prometheus(busy: Endpoints, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Prometheus with the configuration of ``docker``, which reads the server each second."""
    if shutil.which("prometheus") is None:
        reason = "prometheus not found; install it: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DOCKER / "prometheus" / "alerts.yaml")]
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "echolm"]
    job["static_configs"] = [{"targets": [urllib.parse.urlsplit(busy.metrics_url).netloc]}]
    config["scrape_configs"] = [job]
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["prometheus", f"--config.file={directory / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address={address}"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        prometheus = Prometheus(f"http://{address}")

        def has_read() -> bool:
            assert process.poll() is None, (directory / "log").read_text()[-2_000:]
            try:
                return len(prometheus.values("count_over_time(up[1m]) > 3")) == 1
            except OSError:
                return False

        assert eventually(has_read, 60)
        # Counters that grow while it looks, for rates above zero.
        for _ in range(2):
            work(busy)
            time.sleep(2)
        yield prometheus
    finally:
        process.terminate()
        process.wait(20)


def page(endpoints: Endpoints) -> str:
    with urllib.request.urlopen(endpoints.metrics_url, timeout=10) as answer:
        return str(answer.read().decode())


def test_the_endpoint_has_the_metrics_of_the_table(busy: Endpoints) -> None:
    expected = {name for name in METRICS if not NOT_HERE.match(name)}

    def shown() -> dict[str, str]:
        return dict(re.findall(r"(?m)^# TYPE (echolm_\w+) (\w+)$", page(busy)))

    assert eventually(lambda: expected <= set(shown()), 20), expected - set(shown())
    for name, kind in shown().items():
        assert METRICS[name].kind == kind
    for name, meaning in re.findall(r"(?m)^# HELP (echolm_\w+) (.+)$", page(busy)):
        assert METRICS[name].meaning == meaning


def test_the_endpoint_has_the_labels_of_the_table(busy: Endpoints) -> None:
    series = {name: spec for spec in METRICS.values() for name in spec.series}
    seen = 0
    for name, labels in re.findall(r"(?m)^(echolm_\w+)(?:{(.*)})? ", page(busy)):
        names = set(re.findall(r'(\w+)="', labels)) - {"le"}
        assert names == set(series[name].labels), name
        seen += 1
    assert seen > 100


def test_histograms_reach_from_a_decision_to_a_whole_answer(busy: Endpoints) -> None:
    bounds = re.findall(r'echolm_request_latency_seconds_bucket{.*le="([^"]+)".*}', page(busy))
    assert {float(bound) for bound in bounds} == {*SECONDS_BUCKETS, math.inf}


PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_has_something_to_show(prometheus: Prometheus, panel: dict[str, Any]) -> None:
    for series in panel["targets"]:
        query = series["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
        values = prometheus.values(query)
        if not NOT_HERE.search(query):
            assert values and not all(math.isnan(value) for value in values), query


def test_what_was_asked_is_what_is_shown(prometheus: Prometheus) -> None:
    [offloaded] = prometheus.values("sum(echolm_offloaded_total)")
    [others] = prometheus.values('sum(echolm_requests_total{llm=~"small_llm|stored"})')
    assert offloaded == others > 0
    [answers] = prometheus.values("sum(echolm_requests_total)")
    [timed] = prometheus.values("sum(echolm_request_latency_seconds_count)")
    assert answers == timed
    [rated] = prometheus.values('sum(echolm_rated_answers_total{source="caller"})')
    assert rated >= 9
    assert prometheus.values("echolm_example_store_up") == [1.0]
    assert set(prometheus.values("echolm_learning_log_up")) == {1.0}
    assert prometheus.values("echolm_llm_ready") == [1.0, 1.0]


def test_no_alert_fires_on_a_healthy_server(prometheus: Prometheus) -> None:
    [group] = prometheus.ask("rules")["groups"]
    assert len(group["rules"]) == 17
    for rule in group["rules"]:
        assert (rule["health"], rule["state"]) == ("ok", "inactive"), rule["name"]
