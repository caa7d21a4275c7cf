"""Plots of an evaluation's report, one PNG each. Needs the extra ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from echolm_lab.report.quality import HOLDS_QUALITY

Seeds = Mapping[str, Mapping[str, Any]]
"""An experiment's figures by seed."""


def draw(report: Mapping[str, Any], directory: Path) -> list[Path]:
    """Every plot for which the report has figures."""
    directory.mkdir(parents=True, exist_ok=True)
    files = []
    for name, (experiment, plot) in _PLOTS.items():
        seeds = report["experiments"].get(experiment, {}).get("seeds")
        if not seeds:
            continue
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        plot(figure, seeds)
        files.append(directory / f"{name}.png")
        figure.savefig(files[-1], dpi=130)
    return files


def draw_comparison(report: Mapping[str, Any], file: Path) -> None:
    """Win rate over throughput of the policies of one comparison, as a PNG."""
    figure = Figure(figsize=(7.0, 4.2), layout="constrained")
    _frontier(figure, {"": {"policies": list(report["policies"].values())}})
    figure.savefig(file, dpi=130)


def _frontier(figure: Figure, seeds: Seeds) -> None:
    axes = figure.subplots()
    names = list(dict.fromkeys(r["policy"] for f in seeds.values() for r in f["policies"]))
    for number, name in enumerate(names):
        rows = [r for f in seeds.values() for r in f["policies"] if r["policy"] == name]
        x, y = [r["throughput"] for r in rows], [r["win_rate"] for r in rows]
        axes.scatter(x, y, color=f"C{number}", marker="*" if name == "echolm" else "o", s=60)
        axes.annotate(name, (x[0], y[0]), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.axhline(HOLDS_QUALITY, color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel("requests/s at saturation")
    axes.set_ylabel("win rate against always_large")
    axes.set_title("Quality and throughput")


def _learning(figure: Figure, seeds: Seeds) -> None:
    axes = figure.subplots()
    for number, (seed, figures) in enumerate(seeds.items()):
        x = [point["requests"] for point in figures["curve"]]
        for key, style in (("mean_score", "-"), ("offload_share", "--")):
            y = [point[key] for point in figures["curve"]]
            label = f"{key.replace('_', ' ')}, seed {seed}"
            axes.plot(x, y, style, color=f"C{number}", label=label)
    axes.set_xlabel("requests answered")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8)
    axes.set_title("Learning")


def _burst(figure: Figure, seeds: Seeds) -> None:
    upper, lower = figure.subplots(2, sharex=True)
    for number, (seed, figures) in enumerate(seeds.items()):
        timeline, color = figures["timeline"], f"C{number}"
        x = [point["second"] for point in timeline]
        upper.plot(x, [p["offload_share"] for p in timeline], color=color, label=f"seed {seed}")
        lower.plot(x, [p["p50_s"] for p in timeline], color=color, label=f"p50, seed {seed}")
        lower.plot(x, [p["p99_s"] for p in timeline], "--", color=color, label=f"p99, seed {seed}")
        start, end = figures["calm_s"], figures["calm_s"] + figures["burst_s"]
    for axes in (upper, lower):
        axes.axvspan(start, end, color="grey", alpha=0.15)
        axes.legend(fontsize=7)
    upper.set_ylabel("offload share")
    lower.set_ylabel("latency, s")
    lower.set_xlabel("seconds; the burst is shaded")


def _drift(figure: Figure, seeds: Seeds) -> None:
    plots = figure.subplots(2, sharex=True)
    for number, figures in enumerate(seeds.values()):
        for axes, phase in zip(plots, figures["phases"], strict=True):
            axes.plot(range(1, len(phase["curve"]) + 1), phase["curve"], color=f"C{number}")
            axes.axhline(0.98 * phase["reachable"], color=f"C{number}", linestyle=":")
            axes.set_title(f"after {phase['name']}", fontsize=9)
            axes.set_ylabel("mean score")
    plots[-1].set_xlabel("ratings; dotted: 0.98 of the reachable")


def _solicit(figure: Figure, seeds: Seeds) -> None:
    axes = figure.subplots()
    for number, (seed, figures) in enumerate(seeds.items()):
        for name, style in (("solicited", "-"), ("random", "--")):
            row = figures["rows"][name]
            label = f"{name}, seed {seed}"
            axes.plot(row["ratings_before"], row["curve"], style, color=f"C{number}", label=label)
    axes.set_xlabel("ratings")
    axes.set_ylabel("mean score of the last requests")
    axes.legend(fontsize=8)
    axes.set_title("Ratings asked for and ratings at random")


_PLOTS: dict[str, tuple[str, Callable[[Figure, Seeds], None]]] = {
    "frontier": ("learning", _frontier),
    "learning": ("learning", _learning),
    "burst": ("burst", _burst),
    "drift": ("drift", _drift),
    "solicit": ("solicit", _solicit),
}
