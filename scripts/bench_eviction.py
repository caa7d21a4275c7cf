#!/usr/bin/env python3
"""Compare eviction policies: how much a store capped at a share of its size still offloads.

A simulation without LLMs: a request counts as offloaded if the store has an example of its
intent, which is what the demo workload's small LLM needs. A past is stored as it comes, each
policy making room as it must; then new requests of the same stream are counted. Times of the
past are spread over --days. EchoLM's policy is the real one, with its statistics and real
embeddings, which say which examples are relevant to the same requests. The utility model is
assumed to find examples of the request's intent useful with a probability drawn for each from
--utility, and no others; "equal shares" divides each offload among its examples instead, as if no
other example could have served, and "no neighbours" evicts by value per byte alone. The last line
is JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from random import Random

import numpy as np
from echolm.embedding.texts import TextEmbedder
from echolm.learning.request_statistics import fit
from echolm.retrieval.relevance import SimilarityScale
from echolm.serving.serve import prepare_embedder
from echolm.settings.loading import load_settings
from echolm_lab.experiments.eviction import (
    POLICIES,
    RANKS,
    ByRank,
    Contents,
    EvictionPolicy,
    ValueDensity,
    offloaded,
)
from echolm_lab.tasks import Workload
from rich.console import Console
from rich.progress import track

_EMBED = 1_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--past", type=int, default=20_000, help="interactions stored one by one")
    parser.add_argument("--requests", type=int, default=4_000, help="new ones that are counted")
    parser.add_argument("--share", type=float, default=0.05, help="of the full store's bytes")
    parser.add_argument("--days", type=float, default=7.0, help="that the past takes")
    parser.add_argument(
        "--utility",
        type=float,
        nargs=2,
        default=(0.7, 0.99),
        metavar=("LEAST", "MOST"),
        help="of examples of the request's intent, below 1",
    )
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    console = Console(stderr=True)
    settings = load_settings()
    prepare_embedder(settings, console.print)
    rows: dict[str, list[float]] = defaultdict(list)
    for seed in range(1, options.seeds + 1):
        console.print(f"seed {seed}")
        stream = Workload(seed=0).stream(options.past + options.requests, seed=seed)
        past, new = stream[: options.past], stream[options.past :]
        size = sum(len(i.text.encode()) + len(i.answer.encode()) for i in past)
        with tempfile.TemporaryDirectory() as directory:
            embed = TextEmbedder(settings.embedding)
            batches = range(0, len(past), _EMBED)
            embeddings = np.concatenate(
                [
                    embed([item.text for item in past[k : k + _EMBED]])
                    for k in track(batches, description="  embedding", transient=True)
                ]
            )

            half = len(past) // 2
            nearest = (embeddings[half:] @ embeddings[:half].T).max(axis=1)
            same = SimilarityScale.of(fit(embeddings, nearest, version=1)).same
            empty = functools.partial(Contents, embeddings, same)
            work = Path(directory)

            def own_policy(name: str, contents: Contents, work: Path = work) -> EvictionPolicy:
                near = None if "no neighbours" in name else contents.neighbours
                return ValueDensity(work / name, near, "equal shares" in name)

            for name in POLICIES:
                contents = empty()
                policy: EvictionPolicy | None = None
                if name in RANKS:
                    policy = ByRank(name, Random(seed))
                elif name != "full store":
                    policy = own_policy(name, contents)
                capacity = options.share * size
                rest = (capacity, options.days, options.utility, Random(seed))
                rows[name].append(offloaded(past, new, policy, contents, *rest))
    full = np.array(rows["full store"])
    print(f"{options.past} past interactions, store capped at {options.share:.0%} of their bytes")
    report = {}
    for name, shares in rows.items():
        kept = np.array(shares) / full
        report[name] = {"offloaded": float(np.mean(shares)), "kept": float(kept.mean())}
        print(
            f"  {name:36} offloaded {np.mean(shares):6.1%}   of the full store's "
            f"{kept.mean():.3f} ± {kept.std():.3f}"
        )
    print(json.dumps({"past": options.past, "share": options.share, "policies": report}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
