"""Tables, plots and checks from what ``scripts/bench_gpu.py`` has measured.

What was not measured has no table, and its checks say so.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from echolm_lab.report.check import Check, finite
from echolm_lab.report.quality import HOLDS_QUALITY

Results = Mapping[str, Any]
_NONE = math.nan


def write(work: Path) -> str:
    """Write ``report.md``, ``report.json`` and plots beside the results; returns the text.

    Plots need the extra ``evaluate``; without it there are none.
    """
    results = _read(work)
    rows = checks(results)
    text = "\n\n".join([*_sections(results), _table(_COLUMNS, map(_check_cells, rows))]) + "\n"
    (work / "report.md").write_text(text, encoding="utf-8")
    kept = [{**asdict(check), "value": finite(check.value), "holds": check.holds} for check in rows]
    (work / "report.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    _draw(results, work / "plots")
    return text


def _read(work: Path) -> dict[str, Any]:
    """``evaluate``, ``path`` and ``shapes`` by name, as far as they are there."""

    def load(file: Path) -> Any:
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    shapes = {file.stem: load(file) for file in sorted((work / "shapes").glob("*.json"))}
    return {
        "evaluate": load(work / "evaluate.json"),
        "path": load(work / "path.json"),
        "shapes": {name: _settings(values) for name, values in shapes.items()},
        "machines": [
            values["machine"]
            for values in (load(work / "evaluate.json"), load(work / "path.json"), *shapes.values())
            if "machine" in values
        ],
    }


def _settings(shape: Results) -> list[Results]:
    """Each setting's figures, of ``repeats`` the mean; ``spread`` is that of the requests/s."""
    repeats: dict[tuple[int, str, int], list[Results]] = {}
    for row in shape.values():
        if isinstance(row, dict) and "requests_per_s" in row:
            setting = row["examples"], row["order"], row["concurrency"]
            repeats.setdefault(setting, []).append(row)
    return [_mean(rows) for rows in repeats.values()]


def _mean(rows: Sequence[Results]) -> Results:
    means: dict[str, Any] = {}
    for key, first in rows[0].items():
        values = [row[key] for row in rows if row[key] is not None]
        means[key] = statistics.fmean(values) if values and isinstance(values[0], float) else first
    spread = statistics.stdev(_speeds(rows)) if len(rows) > 1 else 0.0
    return {**means, "spread": spread, "repeats": len(rows)}


def checks(results: Results) -> list[Check]:
    """Every check; its value is NaN where nothing was measured."""
    report = results["evaluate"].get("report", {})
    policies = report.get("policies", {})
    echolm, large = policies.get("echolm", {}), policies.get("always_large", {})
    small, aided = policies.get("always_small", {}), report.get("small_with_examples", {})
    path = results["path"].get("path", {}).get("models", {})
    full = path.get("echolm", {})
    steady: Results = next((row for n, row in path.items() if n.startswith("echolm at")), {})
    overhead = _NONE
    if echolm.get("request_s"):
        overhead = echolm["selection_s"] / echolm["request_s"]
    traced = {row["policy"]: row for row in report.get("trace", ())}
    return [
        Check("win rate against always_large", HOLDS_QUALITY, echolm.get("win_rate", _NONE)),
        Check("throughput over always_large", 5.9, _ratio(echolm, large, "throughput")),
        Check("p50 latency over always_large's", 0.25, _ratio(echolm, large, "p50_s"), "at_most"),
        Check("p99 latency over always_large's", 0.30, _ratio(echolm, large, "p99_s"), "at_most"),
        Check(
            "small LLM: p99 with examples over without",
            1.10,
            _ratio(aided, small, "p99_s"),
            "at_most",
        ),
        Check("selection and routing over request, seconds", 0.01, overhead, "at_most"),
        Check(
            "small LLM: cost of 5 examples in prefix order over that by similarity",
            0.5,
            prefix_cost_ratio(results["shapes"]),
            "at_most",
        ),
        Check("path: requests/s", 1_500, full.get("requests_per_s", _NONE)),
        Check("path: p50 ms at that throughput", 8, full.get("p50_ms", _NONE), "at_most"),
        Check("path: p50 ms under a fixed load", 8, steady.get("p50_ms", _NONE), "at_most"),
        *(_trace_checks(traced["echolm"], traced["always_large"]) if traced else ()),
    ]


def _trace_checks(echolm: Results, large: Results) -> Iterator[Check]:
    p99 = _ratio(echolm, large, "p99_s")
    yield Check("trace: p99 latency over always_large's", 0.29, p99, "at_most")
    yield Check("trace: win rate against always_large", HOLDS_QUALITY, echolm["win_rate"])


def prefix_cost_ratio(shapes: Mapping[str, Sequence[Results]]) -> float:
    """Of the smallest LLM at its highest concurrency; NaN unless all three were measured.

    The cost is the share of throughput without examples that five examples take.
    """
    for rows in sorted(shapes.values(), key=lambda rows: -max(_speeds(rows), default=0.0)):
        most = max((row["concurrency"] for row in rows), default=0)
        speed = {
            (row["examples"], row["order"]): row["requests_per_s"]
            for row in rows
            if row["concurrency"] == most
        }
        if {(0, "none"), (5, "prefix"), (5, "similarity")} <= set(speed):
            alone = speed[0, "none"]
            unordered = alone - speed[5, "similarity"]
            return (alone - speed[5, "prefix"]) / unordered if unordered > 0 else _NONE
    return _NONE


def _speeds(rows: Sequence[Results]) -> Iterator[float]:
    return (row["requests_per_s"] for row in rows)


def _ratio(row: Results, other: Results, key: str) -> float:
    return row[key] / other[key] if row.get(key) and other.get(key) else _NONE


_COLUMNS = ("measure", "target", "measured", "holds")


def _check_cells(check: Check) -> list[str]:
    sign = "≥" if check.kind == "at_least" else "≤"
    if math.isnan(check.value):
        return [check.measure, f"{sign} {check.target:g}", "not measured", ""]
    holds = "yes" if check.holds else "**no**"
    return [check.measure, f"{sign} {check.target:g}", f"{check.value:.3g}", holds]


def _sections(results: Results) -> Iterator[str]:
    for machine in results["machines"]:
        host, packages = machine["host"], machine["versions"]
        gpus = "; ".join(machine["gpus"]) or "no GPU"
        libraries = ", ".join(f"{name} {version}" for name, version in packages.items())
        yield (
            f"`{machine['command']}`: {gpus}; {host['cores']} cores of {host['cpu']}, Python "
            f"{host['python']}; {libraries}"
        )
    if report := results["evaluate"].get("report"):
        yield _policies(report)
        if "trace" in report:
            yield _trace(report["trace"])
    for name, rows in results["shapes"].items():
        if rows:
            yield _shape(name, rows)
    if path := results["path"].get("path"):
        rows = [
            [model, f"{row['requests_per_s']:.0f}"]
            + [f"{row[key]:.1f}" for key in ("p50_ms", "p90_ms", "p99_ms")]
            for model, row in path["models"].items()
        ]
        title = f"path, {path['examples']:,} examples, concurrency {path['concurrency']}"
        yield _table((title, "requests/s", "p50 ms", "p90 ms", "p99 ms"), rows)


def _policies(report: Results) -> str:
    large = report["policies"]["always_large"]["throughput"]
    rows = [
        [
            f"**{name}**" if name == "echolm" else name,
            f"{row['mean_score']:.3f}",
            f"{row['win_rate']:.3f}",
            f"{row['throughput']:.1f}",
            f"{row['throughput'] / large:.1f}",
            f"{row['p50_s'] * 1e3:.0f}",
            f"{row['p99_s'] * 1e3:.0f}",
            f"{row['offload_share']:.0%}",
            str(row["failed"]),
        ]
        for name, row in report["policies"].items()
    ]
    heads = ("mean score", "win rate", "requests/s", "times", "p50 ms", "p99 ms", "offloaded")
    table = _table(("policy", *heads, "failed"), rows)
    return (
        f"{table}\n\np50, p99 at {report['latency_rate']:.1f} requests/s, 70% of what the large "
        "LLM alone serves at saturation."
    )


def _trace(rows: Sequence[Results]) -> str:
    heads = ("requests", "win rate", "p50 ms", "p99 ms", "over 10 s", "offloaded", "failed")
    cells = [
        [
            row["policy"],
            str(row["requests"]),
            f"{row['win_rate']:.3f}",
            f"{row['p50_s'] * 1e3:.0f}",
            f"{row['p99_s'] * 1e3:.0f}",
            str(row["over_10_s"]),
            f"{row['offload_share']:.0%}",
            str(row["failed"]),
        ]
        for row in rows
    ]
    return _table(("under a recorded trace", *heads), cells)


def _shape(name: str, rows: Sequence[Results]) -> str:
    cells = [
        [
            str(row["examples"]),
            row["order"],
            str(row["concurrency"]),
            f"{row['prompt_tokens']:.0f}",
            f"{row['requests_per_s']:.1f}" + f" ± {row['spread']:.1f}" * (row["repeats"] > 1),
            f"{row['ttft_p50_ms']:.0f}",
            f"{row['ttft_p99_ms']:.0f}",
            f"{row['tbt_mean_ms']:.1f}",
            f"{row['tbt_p99_ms']:.1f}",
            "" if row["prefix_hit_rate"] is None else f"{row['prefix_hit_rate']:.0%}",
        ]
        for row in rows
    ]
    heads = ("order", "in flight", "prompt tokens", "requests/s", "TTFT p50 ms", "p99")
    table = _table((f"{name}: examples", *heads, "TBT mean ms", "p99", "prefix hits"), cells)
    repeats = max(row["repeats"] for row in rows)
    if repeats == 1:
        return table
    return f"{table}\n\nUp to {repeats} runs of each: their mean ± standard deviation."


def _table(heads: Sequence[str], rows: Any) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _draw(results: Results, directory: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return
    directory.mkdir(parents=True, exist_ok=True)
    if report := results["evaluate"].get("report"):
        figure = Figure(figsize=(8.0, 4.0), layout="constrained")
        left, right = figure.subplots(1, 2)
        for number, (name, row) in enumerate(report["policies"].items()):
            color, marker = f"C{number}", "*" if name == "echolm" else "o"
            for axes, x in ((left, row["throughput"]), (right, row["p99_s"] * 1e3)):
                axes.scatter(x, row["win_rate"], color=color, marker=marker, s=60, label=name)
        left.set_xlabel("requests/s at saturation")
        right.set_xlabel("p99 latency, ms")
        left.set_ylabel("win rate against always_large")
        for axes in (left, right):
            axes.axhline(HOLDS_QUALITY, color="grey", linestyle=":", linewidth=1)
        left.legend(fontsize=7)
        figure.savefig(directory / "gpu_policies.png", dpi=130)
    shapes = {name: rows for name, rows in results["shapes"].items() if rows}
    if shapes:
        figure = Figure(figsize=(8.0, 3.2 * len(shapes)), layout="constrained")
        grid = figure.subplots(len(shapes), 2, squeeze=False)
        for (name, rows), pair in zip(shapes.items(), grid, strict=True):
            for axes, key in zip(pair, ("requests_per_s", "ttft_p50_ms"), strict=True):
                _lines(axes, rows, key)
                axes.set_title(f"{name}: {key.replace('_', ' ')}", fontsize=9)
                axes.set_xlabel("examples")
                axes.set_ylim(bottom=0.0)
            pair[0].legend(fontsize=7)
        figure.savefig(directory / "gpu_shapes.png", dpi=130)


def _lines(axes: Any, rows: Sequence[Results], key: str) -> None:
    """One line for each order and concurrency, from the same point without examples."""
    for order, style in (("prefix", "-"), ("similarity", "--")):
        for number, concurrency in enumerate(sorted({row["concurrency"] for row in rows})):
            line = sorted(
                (row["examples"], row[key])
                for row in rows
                if row["concurrency"] == concurrency and row["order"] in (order, "none")
            )
            label = f"{order} order, {concurrency} in flight"
            axes.plot(*zip(*line, strict=True), style, marker=".", color=f"C{number}", label=label)
