#!/usr/bin/env python3
"""Compare the router with others on public sets of requests that several LLMs have answered.

--gsm8k is routellm/evals/gsm8k/gsm8k_responses.csv of lm-sys/RouteLLM with the columns of its two
LLMs; --paretobandit is data_collection/rewards/val_k4.jsonl of ParetoBandit/ParetoBandit. With
--paretobandit-python, an interpreter that can import pareto_bandit, ParetoBandit's own code runs
on the same streams. Each seed is an order of the requests. Settings are the defaults. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# As `echolm serve` sets it: more threads only spin on matrices of this size.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from echolm.embedding.texts import TextEmbedder
from echolm.errors import EchoError
from echolm.serving.serve import prepare_embedder
from echolm.settings.loading import load_settings
from echolm_lab.experiments.arguments import at_least_one
from echolm_lab.experiments.routing import (
    labelled_apgr,
    linucb_regrets,
    online_apgr,
    online_regrets,
    paretobandit_regrets,
)
from echolm_lab.experiments.routing_measures import cost_weights
from echolm_lab.report.check import Check, jsonable, summarise
from echolm_lab.report.tables import print_checks
from echolm_lab.tasks.routing_sets import RoutingSet, load_gsm8k, load_paretobandit
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

ALPHAS = (0.05, 0.1, 0.3, 1.0)
"""Of LinUCB; the one that is the best in hindsight counts."""

Embeddings = NDArray[np.float32]


def orders(data: RoutingSet, seeds: int) -> list[NDArray[np.intp]]:
    return [np.random.default_rng(seed).permutation(len(data)) for seed in range(1, seeds + 1)]


def gsm8k(data: RoutingSet, embeddings: Embeddings, options: argparse.Namespace) -> dict[str, Any]:
    """RouteLLM's set: APGR online and frozen."""
    checks, rows = [], []
    for seed, order in enumerate(track(orders(data, options.seeds), "GSM8K", transient=True), 1):
        stream, vectors = data.take(order), embeddings[order]
        row = {rated: online_apgr(stream, vectors, seed, rated) for rated in ("all", "solicited")}
        frozen = labelled_apgr(stream, vectors, options.labels, seed)
        rows.append({**row, "frozen": frozen})
        checks.append(
            [
                Check("APGR, all rated", 0.58, row["all"]["apgr"]),
                Check("APGR, 5% rated", 0.53, row["solicited"]["apgr"]),
                Check(f"APGR, frozen after {options.labels} labels", 0.61, frozen["echolm"]),
                Check("calibration error", 0.05, row["all"]["calibration_error"], "at_most"),
            ]
        )
    return {"checks": summarise(checks), "figures": {name: _means(rows, name) for name in rows[0]}}


def paretobandit(
    data: RoutingSet, embeddings: Embeddings, options: argparse.Namespace
) -> dict[str, Any]:
    """ParetoBandit's set: regret to the best fixed LLM at weights where each LLM is that one."""
    streams = orders(data, options.seeds)
    regrets: dict[str, Any] = {"echolm": []}
    errors = []
    for seed, order in enumerate(track(streams, "ParetoBandit", transient=True), 1):
        of_weights, error = online_regrets(data.take(order), embeddings[order], seed)
        regrets["echolm"].append(of_weights)
        errors.append(error)
    by_alpha = {
        alpha: [linucb_regrets(data.take(o), embeddings[o], alpha) for o in streams]
        for alpha in track(ALPHAS, "LinUCB", transient=True)
    }
    best = min(ALPHAS, key=lambda alpha: float(np.mean(by_alpha[alpha])))
    regrets[f"LinUCB, alpha {best}"] = by_alpha[best]
    if options.paretobandit_python:
        for priors, name in (("none", "ParetoBandit"), ("warmup", "ParetoBandit, warm")):
            arguments = (streams, options.paretobandit_python, priors)
            regrets[name] = paretobandit_regrets(data, embeddings, *arguments)
    means = {name: np.mean(rows, axis=1) for name, rows in regrets.items()}
    others = [name for name in regrets if name not in ("echolm", "ParetoBandit, warm")]
    checks = [
        [
            *(
                Check(
                    f"regret less that of {n}",
                    0.0,
                    float((means["echolm"] - means[n])[k]),
                    "at_most",
                )
                for n in others
            ),
            Check("calibration error", 0.05, errors[k], "at_most"),
        ]
        for k in range(options.seeds)
    ]
    return {
        "checks": summarise(checks),
        "cost_weights": cost_weights(data),
        "llms": dict(zip(data.llms, data.means.tolist(), strict=True)),
        "regrets": {
            name: {
                "mean": np.mean(rows, axis=0).tolist(),
                "std": np.std(rows, axis=0).tolist(),
                "of_all_weights": float(np.mean(rows)),
            }
            for name, rows in regrets.items()
        },
    }


def _means(rows: Sequence[Mapping[str, Mapping[str, float]]], name: str) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of each figure."""
    values = {key: [row[name][key] for row in rows] for key in rows[0][name]}
    return {key: [float(np.mean(v)), float(np.std(v))] for key, v in values.items()}


def _print_regrets(console: Console, result: Mapping[str, Any]) -> None:
    weights = "".join(f"{weight:>18.3g}" for weight in result["cost_weights"])
    console.print(f"{'regret at cost weight':22}{weights}{'mean':>10}")
    for name, row in result["regrets"].items():
        cells = zip(row["mean"], row["std"], strict=True)
        line = "".join(f"{mean:>10.4f} ± {std:.3f}" for mean, std in cells)
        console.print(f"{name:22}{line}{row['of_all_weights']:>10.4f}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gsm8k", type=Path, metavar="FILE")
    parser.add_argument("--paretobandit", type=Path, metavar="FILE")
    parser.add_argument("--paretobandit-python", type=Path, metavar="PYTHON")
    parser.add_argument("--seeds", type=at_least_one, default=10, help="orders of the requests")
    parser.add_argument("--labels", type=at_least_one, default=650, help="before it is frozen")
    options = parser.parse_args()
    if not options.gsm8k and not options.paretobandit:
        parser.error("expected --gsm8k FILE or --paretobandit FILE, got neither")
    console = Console(width=120)
    settings = load_settings()
    results: dict[str, Any] = {}
    try:
        prepare_embedder(settings, Console(stderr=True).print)
        embed = TextEmbedder(settings.embedding)
        if options.gsm8k:
            data = load_gsm8k(options.gsm8k)
            results["gsm8k"] = gsm8k(data, embed(data.prompts), options)
            print_checks(console, "GSM8K, Mixtral-8x7B and GPT-4", results["gsm8k"]["checks"])
        if options.paretobandit:
            data = load_paretobandit(options.paretobandit)
            results["paretobandit"] = paretobandit(data, embed(data.prompts), options)
            print_checks(console, "ParetoBandit", results["paretobandit"]["checks"])
            _print_regrets(console, results["paretobandit"])
    except EchoError as error:
        print(f"bench_routing: {error}", file=sys.stderr)
        return 1
    print(json.dumps(jsonable({"benchmark": "routing", "seeds": options.seeds, **results})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
