#!/usr/bin/env python3
"""Show how much the store answers by itself, and how often it is wrong, among traps and repeats.

Each stream is served from an empty store: repeats of earlier requests, traps (an earlier request
with another number, an opposite, a negation or two words exchanged, so that the right answer is
another one) and new requests. The figures are of the whole stream, learning included. The semantic
cache has the threshold that is best in hindsight. The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from random import Random

import numpy as np
from echolm.embedding.texts import TextEmbedder
from echolm.serving.serve import prepare_embedder
from echolm.settings.loading import load_settings
from echolm_lab.experiments.stored_answers import DATA, Result, serve, stream, summarise
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

_BATCH = 64


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, required=True, help="with the data sets' files")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--repeats", type=float, default=0.2)
    parser.add_argument("--traps", type=float, default=0.2)
    parser.add_argument("--strongest", type=float, default=0.5, help="share it answers of the rest")
    parser.add_argument("--error", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    console = Console(stderr=True)
    settings = load_settings()
    prepare_embedder(settings, console.print)
    embed = TextEmbedder(settings.embedding)
    known: dict[str, NDArray[np.float32]] = {}
    report: dict[str, dict[str, list[float]]] = {}
    for data in options.data:
        items = DATA[data](options.folder)
        results = []
        for seed in range(1, options.seeds + 1):
            rng = Random(seed)
            sent = stream(items, options.requests, options.repeats, options.traps, rng)
            new = list(dict.fromkeys(i.text for i in sent if i.text not in known))
            batches = range(0, len(new), _BATCH)
            for k in track(batches, description=f"{data} {seed}", console=console, transient=True):
                some = new[k : k + _BATCH]
                known.update(zip(some, embed(some), strict=True))
            embeddings = np.stack([known[i.text] for i in sent])
            served = serve(sent, embeddings, options.error, options.strongest, rng)
            results.append(summarise(served, options.error))
        print(f"{data}: {options.requests} requests, {options.seeds} seeds")
        report[data] = {}
        for field in dataclasses.fields(Result):
            values = np.array([getattr(r, field.name) for r in results])
            report[data][field.name] = [round(float(v), 5) for v in values]
            print(
                f"  {field.name:15} {values.mean():7.2%}  "
                f"({values.min():.2%} to {values.max():.2%})"
            )
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
