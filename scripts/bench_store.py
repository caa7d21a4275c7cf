#!/usr/bin/env python3
"""Measure searches in a large example store: Milvus Lite, or the Milvus server at --milvus-uri.

Fills a collection of its own with clustered random vectors of several tenants, waits until all of
them are indexed, and searches one by one as the retriever does, tenant and expiry in the filter.
Reports latency, the memory of this process, which must not grow with the store, and its CPU time
for searches of 8 rows over that for pymilvus' own, in 5 pairs. The collection stays, and is not
filled again. With --statistics it also begins statistics of every example, as the example manager
does when it meets a store for the first time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import psutil
from echolm.serving.attach import attached
from echolm.settings import RetrievalSettings
from echolm.settings.loading import load_settings
from echolm.store.milvus import MilvusStore
from echolm_lab.experiments.large_store import (
    CLUSTERS,
    DIMENSION,
    compare_cpu,
    fill,
    make_statistics,
    measure,
    wait_indexed,
)
from echolm_lab.report.progress import Stage
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--searches", type=int, default=2_000)
    parser.add_argument("--tenants", type=int, default=10, help="each with as many examples")
    parser.add_argument("--milvus-uri", default="", help="default: Milvus Lite in build/bench")
    parser.add_argument("--index", default="", help="default: IVF_FLAT; of a server: HNSW")
    parser.add_argument(
        "--statistics", action="store_true", help="also begin statistics of every example"
    )
    options = parser.parse_args()
    console = Console(stderr=True)
    directory = ROOT / "build" / "bench" / f"store-{options.examples}"
    directory.mkdir(parents=True, exist_ok=True)
    index = options.index or ("HNSW" if options.milvus_uri else "IVF_FLAT")
    parameters = {
        "IVF_FLAT": ({"nlist": 256}, {"nprobe": 16}),
        "HNSW": ({"M": 16, "efConstruction": 128}, {"ef": 64}),
    }
    loaded = load_settings()
    retrieval = RetrievalSettings(
        milvus_uri=options.milvus_uri,
        collection=f"bench_{options.examples}_{index.lower()}",
        index_type=index,
        index_params=parameters.get(index, ({}, {}))[0],
        search_params=parameters.get(index, ({}, {}))[1],
    )
    process = psutil.Process()
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, DIMENSION), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    settings = loaded.model_copy(update={"data_dir": directory, "retrieval": retrieval})
    with attached(settings) as found:
        store = MilvusStore(found.retrieval, "bench", DIMENSION)
        before = process.memory_info().rss
        if (there := store.count()) < options.examples:
            if there:
                raise SystemExit(
                    f"bench_store: expected {options.examples} examples in the collection or none, "
                    f"got {there}, of an earlier run that was interrupted; drop "
                    f"{retrieval.collection}"
                )
            with Stage(console, "storing examples", options.examples) as stage:
                fill(store, options.examples, options.tenants, centres, stage.step_by)
            wait_indexed(found.retrieval.milvus_uri, retrieval.collection, console)
        p50, p99, hits = measure(store, options.searches, options.tenants, centres, retrieval.top_n)
        statistics = make_statistics(settings, store, console) if options.statistics else 0
        grown = (process.memory_info().rss - before) / 2**20
        cpu_ratios = compare_cpu(store, found.retrieval, options.tenants, centres)
        store.close()
    print(
        f"{options.examples} examples of {options.tenants} tenants, {index}: p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, {hits:.1f} candidates found; memory of the client grew by "
        f"{grown:.0f} MiB; CPU time of a search {np.mean(cpu_ratios):.2f} ± "
        f"{np.std(cpu_ratios, ddof=1):.2f} of that of pymilvus' own"
    )
    print(
        json.dumps(
            {
                "examples": options.examples,
                "index": index,
                "server": bool(options.milvus_uri),
                "p50_ms": p50,
                "p99_ms": p99,
                "candidates": hits,
                "cpu_ratios": [round(ratio, 3) for ratio in cpu_ratios],
                "statistics": statistics,
                "client_grown_mib": grown,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
