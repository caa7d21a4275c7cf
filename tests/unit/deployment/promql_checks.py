"""What a PromQL query asks for, held against EchoLM's own table of metrics."""

from __future__ import annotations

from collections.abc import Iterator

import promql_parser
from echolm.telemetry import METRICS, MetricSpec

SERIES = {name: spec for spec in METRICS.values() for name in spec.series}
SCRAPED = {"instance", "job"}
"""Labels that Prometheus adds."""
OTHERS = {"up": MetricSpec("up", "gauge", "Prometheus' own: whether a target could be read")}
_GROWTH = ("rate", "increase", "irate")


def parse(query: str) -> promql_parser.Expr:
    """A query of a dashboard or rule; Grafana's variables get a value."""
    for variable, value in (("$__rate_interval", "5m"), ("$instance", ".*")):
        query = query.replace(variable, value)
    return promql_parser.parse(query)


def walk(expression: promql_parser.Expr) -> Iterator[promql_parser.Expr]:
    nodes: list[promql_parser.Expr] = []
    promql_parser.walk(expression, nodes.append)
    return iter(nodes)


def selectors(expression: promql_parser.Expr) -> Iterator[promql_parser.VectorSelector]:
    for node in walk(expression):
        if isinstance(node, promql_parser.VectorSelector):
            yield node
        elif isinstance(node, promql_parser.MatrixSelector):
            yield node.vector_selector


def problems(query: str) -> list[str]:
    """Why a query cannot work on EchoLM's metrics; empty if it can."""
    expression = parse(query)
    problems_found = []
    known = {**SERIES, **OTHERS}
    grown = {
        selector.name
        for node in walk(expression)
        if isinstance(node, promql_parser.Call) and node.func.name in _GROWTH
        for selector in selectors(node)
    }
    labels = set(SCRAPED)
    for selector in selectors(expression):
        spec = known.get(selector.name)
        if spec is None:
            problems_found.append(f"there is no metric {selector.name}")
            continue
        metric_labels = {*spec.labels, *(("le",) if selector.name.endswith("_bucket") else ())}
        labels |= metric_labels
        problems_found += [
            f"{selector.name} has no label {matcher.name}"
            for matcher in selector.matchers.matchers
            if matcher.name not in metric_labels | SCRAPED
        ]
        if (spec.kind == "gauge") == (selector.name in grown):
            problems_found.append(
                f"{selector.name} is a {spec.kind}: rate() is for what only grows"
            )
    for node in walk(expression):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            problems_found += [
                f"no metric has {label}" for label in set(node.modifier.labels) - labels
            ]
    return problems_found
