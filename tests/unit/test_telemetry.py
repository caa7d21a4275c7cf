"""Metrics are gathered and exported; code, table and documentation name the same ones."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from echolm.telemetry import METRICS, Metrics, MetricSpec

REPOSITORY = Path(__file__).resolve().parents[2]
MODELS = sorted((REPOSITORY / "python_backends" / "echolm" / "triton").glob("*.py"))
STATUS_PAGE = REPOSITORY / "python_backends" / "echolm" / "serving" / "status_page.py"
DOCUMENT = REPOSITORY / "docker" / "METRICS.md"
UPDATES = {"add": "counter", "total": "counter", "level": "gauge", "observe": "histogram"}


@dataclass
class Shown:
    """An exported metric that remembers its updates."""

    updates: list[tuple[str, float]] = field(default_factory=list)

    def increment(self, value: float) -> None:
        self.updates.append(("increment", value))

    def set(self, value: float) -> None:
        self.updates.append(("set", value))

    def observe(self, value: float) -> None:
        self.updates.append(("observe", value))


@dataclass
class FakeExporter:
    """An exporter that keeps what it shows."""

    shown: dict[tuple[str, tuple[tuple[str, str], ...]], Shown] = field(default_factory=dict)

    def open(self, spec: MetricSpec, labels: Mapping[str, str]) -> Shown:
        key = (spec.name, tuple(sorted(labels.items())))
        assert key not in self.shown, "opened twice"
        return self.shown.setdefault(key, Shown())

    def of(self, name: str, **labels: str) -> list[tuple[str, float]]:
        return self.shown[name, tuple(sorted(labels.items()))].updates


def test_counts_are_added_up_into_one_update() -> None:
    exporter = FakeExporter()
    metrics = Metrics(exporter)
    for _ in range(10):
        metrics.add("echolm_examples_total", 2, llm="small_llm")
    metrics.add("echolm_examples_total", 5, llm="large_llm")
    assert exporter.shown == {}, "nothing is called before flush()"
    metrics.flush()
    assert exporter.of("echolm_examples_total", llm="small_llm") == [("increment", 20)]
    assert exporter.of("echolm_examples_total", llm="large_llm") == [("increment", 5)]
    metrics.flush()
    assert exporter.of("echolm_examples_total", llm="small_llm") == [("increment", 20)]


def test_a_counter_is_shown_from_zero_on() -> None:
    exporter = FakeExporter()
    metrics = Metrics(exporter)
    metrics.add("echolm_offloaded_total", 0.0)
    metrics.flush()
    assert exporter.of("echolm_offloaded_total") == []


def test_a_total_becomes_what_it_has_grown_by() -> None:
    exporter = FakeExporter()
    metrics = Metrics(exporter)
    for total in (3, 5):
        metrics.total("echolm_examples_total", total, llm="small_llm")
        metrics.total("echolm_examples_total", 1, llm="large_llm")
        metrics.flush()
    assert exporter.of("echolm_examples_total", llm="small_llm") == [
        ("increment", 3),
        ("increment", 2),
    ]
    assert exporter.of("echolm_examples_total", llm="large_llm") == [("increment", 1)]


def test_a_total_that_falls_adds_nothing_until_it_is_passed() -> None:
    exporter = FakeExporter()
    metrics = Metrics(exporter)
    for total in (5, 0, 4, 7):
        metrics.total("echolm_solicited_total", total)
        metrics.flush()
    assert exporter.of("echolm_solicited_total") == [("increment", 5), ("increment", 2)]


def test_of_a_gauge_the_last_value_counts() -> None:
    exporter = FakeExporter()
    metrics = Metrics(exporter)
    metrics.level("echolm_examples_stored", 3)
    metrics.level("echolm_examples_stored", 2)
    metrics.flush()
    assert exporter.of("echolm_examples_stored") == [("set", 2)]


def test_a_gauge_is_shown_after_what_was_counted_with_it() -> None:
    exporter = FakeExporter()
    metrics = Metrics(exporter)
    metrics.level("echolm_llm_in_flight", 0, model="m")
    metrics.add("echolm_llm_cancelled_total", model="m")
    metrics.flush()
    names = [name for name, _ in exporter.shown]
    assert names == ["echolm_llm_cancelled_total", "echolm_llm_in_flight"]


def test_a_histogram_gets_every_value() -> None:
    exporter = FakeExporter()
    metrics = Metrics(exporter)
    for value in (0.1, 0.2):
        metrics.observe("echolm_request_latency_seconds", value, llm="small_llm")
    metrics.flush()
    updates = exporter.of("echolm_request_latency_seconds", llm="small_llm")
    assert updates == [("observe", 0.1), ("observe", 0.2)]


def test_nothing_is_lost_between_threads() -> None:
    exporter = FakeExporter()
    metrics = Metrics(exporter)

    def work() -> None:
        for _ in range(1_000):
            metrics.add("echolm_solicited_total")
            metrics.flush()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metrics.flush()
    assert sum(value for _, value in exporter.of("echolm_solicited_total")) == 4_000


@pytest.mark.parametrize(
    ("update", "name", "labels"),
    [
        ("add", "echolm_nonsense_total", {}),
        ("level", "echolm_offloaded_total", {}),
        ("add", "echolm_requests_total", {"llm": "small_llm"}),
        ("add", "echolm_offloaded_total", {"llm": "small_llm"}),
    ],
)
def test_what_is_not_in_the_table_is_refused(
    update: str, name: str, labels: dict[str, str]
) -> None:
    metrics = Metrics(FakeExporter())
    getattr(metrics, update)(name, 1.0, **labels)
    with pytest.raises(ValueError, match=f"metric {name}: expected"):
        metrics.flush()


def constants(path: Path) -> Iterator[str]:
    """Metric names in a module's code, wherever they stand."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.startswith("echolm_")
            and node.value.isidentifier()
        ):
            yield node.value


def updates(path: Path) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Kind, name and labels of the updates in a module that say them in so many words."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and node.args):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        called = node.func.id if isinstance(node.func, ast.Name) else called
        name, labels = node.args[0], [keyword.arg for keyword in node.keywords]
        if called in UPDATES and isinstance(name, ast.Constant) and None not in labels:
            yield UPDATES[called], name.value, tuple(sorted(str(label) for label in labels))


def test_the_code_has_the_metrics_of_the_table_and_all_of_them() -> None:
    named = {name for path in (*MODELS, STATUS_PAGE) for name in constants(path)}
    named -= {"echolm_stream"}
    assert named == set(METRICS)


def test_the_models_give_the_labels_of_the_table() -> None:
    seen = {(*update, path.name) for path in MODELS for update in updates(path)}
    assert len(seen) > 30, "the search finds the updates"
    for kind, name, labels, module in seen:
        spec = METRICS[name]
        assert (spec.kind, tuple(sorted(spec.labels))) == (kind, labels), module


def documented() -> list[tuple[str, ...]]:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `echolm_")]
    return [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]


def test_the_documentation_has_the_table() -> None:
    """Each row of docker/METRICS.md, in the order of the table."""
    assert documented() == [
        (
            f"`{spec.name}`",
            spec.kind,
            ", ".join(f"`{label}`" for label in spec.labels),
            spec.meaning,
        )
        for spec in METRICS.values()
    ]


def test_names_follow_prometheus_conventions() -> None:
    for spec in METRICS.values():
        assert spec.name.startswith("echolm_")
        assert spec.name.endswith("_total") == (spec.kind == "counter")
        assert spec.name.endswith("_seconds") == (spec.kind == "histogram")
        assert "|" not in spec.meaning and not spec.meaning.endswith(".")
