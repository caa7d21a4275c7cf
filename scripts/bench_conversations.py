#!/usr/bin/env python3
"""Conversations: score and offload of dialogues, and whether look-alikes answer for one another.

The product's own parts run in this process, with the real embedding model; the LLMs are simulated.
Prints what was expected and measured, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

# More threads only spin on matrices of this size.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from echolm.serving.serve import prepare_embedder
from echolm.settings.loading import load_settings
from echolm_lab.experiments.arguments import at_least_one
from echolm_lab.experiments.cold_start import Lab
from echolm_lab.experiments.conversations import conversations
from echolm_lab.experiments.simulation import CachedEmbedder
from echolm_lab.report.check import jsonable, summarise
from echolm_lab.tasks.conversations import Dialogues, DialogueSource
from echolm_lab.tasks.errands import Errands
from echolm_lab.tasks.second_workload import SecondWorkload
from rich.console import Console

SOURCES: dict[str, Callable[[], DialogueSource]] = {
    "questions": lambda: Dialogues(SecondWorkload()),
    "errands": Errands,
}
ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seeds", type=at_least_one, nargs="+", default=[1], metavar="SEED")
    parser.add_argument("--source", choices=list(SOURCES), default="questions", help="of dialogues")
    parser.add_argument("--dialogues", type=at_least_one, default=300, help="that are measured")
    parser.add_argument("--look-alikes", type=at_least_one, default=200)
    parser.add_argument("--long", type=at_least_one, default=100, help="pairs of long requests")
    parser.add_argument("--config", type=Path, default=None, help="an echolm.toml")
    options = parser.parse_args()
    settings = load_settings(options.config)
    prepare_embedder(settings, Console(stderr=True).print)
    outcomes = []
    for seed in options.seeds:
        file = ROOT / "build" / "conversations" / f"{options.source}-{seed}.npz"
        embedder = CachedEmbedder(settings.embedding, file)
        lab = Lab(settings, embedder, SecondWorkload())
        sizes = (options.dialogues, options.look_alikes, options.long)
        outcomes.append(asyncio.run(conversations(lab, SOURCES[options.source](), seed, *sizes)))
        embedder.save()
        print(f"seed {seed}")
        for name, value in outcomes[-1].figures.items():
            print(f"  {name:32} {value:.4g}")
    rows = summarise([outcome.checks for outcome in outcomes])
    for row in rows:
        sign = "≥" if row["kind"] == "at_least" else "≤"
        met = "yes" if row["holds"] else "NO"
        print(f"{row['measure']:40} {sign} {row['target']:<5g} {row['value']:.3f}  {met}")
    print(json.dumps(jsonable({"checks": rows, "figures": [o.figures for o in outcomes]})))
    return 0


if __name__ == "__main__":
    sys.exit(main())
