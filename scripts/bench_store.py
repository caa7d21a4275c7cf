#!/usr/bin/env python3
"""Measure searches in a large example store: Milvus Lite, or the Milvus server at --milvus-uri.

Fills a collection of its own with clustered random vectors of several tenants, waits until all of
them are indexed, and searches one by one as the retriever does, tenant and expiry in the filter.
Reports latency and the memory of this process, which must not grow with the store. The collection
stays, and is not filled again. With --accounts it also opens an account for every example, as the
example manager does when it meets a store for the first time. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
from echolm.examples.consistency import reconcile
from echolm.serving.attach import attached
from echolm.settings import RetrievalSettings, Settings
from echolm.settings.loading import load_settings
from echolm.store.base import Example, Query
from echolm.store.milvus import MilvusStore
from echolm.wiring import open_event_log, open_statistics
from echolm_lab.report.progress import Stage
from numpy.typing import NDArray
from pymilvus import MilvusClient
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
DIMENSION = 384
CLUSTERS, SPREAD = 2_000, 0.04
"""Vectors lie around these centres, noise per component: cosine about 0.6 within a cluster."""
_BATCH = 1_000
_NOW_MS = 1_790_000_000_000
_INDEXING_TIMEOUT_S = 3_600.0


def vectors(rng: np.random.Generator, centres: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """FP32 [n, D], unit length."""
    around = centres[rng.integers(len(centres), size=n)]
    raw = around + SPREAD * rng.standard_normal((n, DIMENSION), dtype=np.float32)
    unit: NDArray[np.float32] = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    return unit


def fill(
    store: MilvusStore,
    count: int,
    tenants: int,
    centres: NDArray[np.float32],
    on_stored: Callable[[int], None],
) -> None:
    """Store examples whose ids go on from those that are there."""
    rng = np.random.default_rng(1)
    for start in range(0, count, _BATCH):
        n = min(_BATCH, count - start)
        rows = vectors(rng, centres, n)
        queries = [Query.of(f"tenant-{k % tenants}", "") for k in range(start, start + n)]
        store.upsert(
            [
                Example(
                    id=start + k + 1,
                    request=f"Request {start + k}: " + "what somebody wants to know " * 3,
                    response=f"Answer {start + k}: " + "what the large LLM said of it " * 9,
                    tenant=query.tenant,
                    scope=query.scope,
                    source_llm="large_llm",
                    quality=0.95,
                    created_at_ms=_NOW_MS,
                    updated_at_ms=_NOW_MS,
                )
                for k, query in enumerate(queries)
            ],
            rows,
        )
        on_stored(n)


def wait_indexed(uri: str, collection: str, console: Console) -> None:
    """Until the index covers all that was stored.

    Raises:
        TimeoutError: it never does.
    """
    client = MilvusClient(uri=uri, timeout=10)
    client.flush(collection, timeout=600)
    deadline = time.monotonic() + _INDEXING_TIMEOUT_S
    while time.monotonic() < deadline:
        state = client.describe_index(collection, "embedding", timeout=60)
        left = int(state.get("pending_index_rows", 0))
        if left == 0 and str(state.get("state", "Finished")) in ("Finished", "3"):
            client.close()
            return
        console.print(f"{left} rows to be indexed")
        time.sleep(10)
    raise TimeoutError("the index was not finished in an hour")


def measure(
    store: MilvusStore, searches: int, tenants: int, centres: NDArray[np.float32], top_n: int
) -> tuple[float, float, float]:
    """p50 and p99 in milliseconds of single searches, and how many were found at each."""
    rng = np.random.default_rng(2)
    asked = vectors(rng, centres, searches)
    took, found = [], 0
    for k in range(-searches // 10, searches):
        query = Query.of(f"tenant-{k % tenants}", "")
        started = time.perf_counter()
        [row] = store.search(asked[k : k + 1] if k >= 0 else asked[:1], [query], top_n, _NOW_MS)
        if k >= 0:
            took.append(1e3 * (time.perf_counter() - started))
            found += len(row)
    p50, p99 = np.quantile(took, (0.5, 0.99))
    return float(p50), float(p99), found / searches


def make_accounts(settings: Settings, store: MilvusStore, console: Console) -> int:
    """A statistics of all examples in the directory of the settings; gives how many it has."""
    for left in settings.data_dir.glob(f"{settings.statistics_path.name}*"):
        left.unlink()
    log = open_event_log(settings)
    statistics = open_statistics(settings)
    with Stage(console, "opening accounts", store.count()) as stage:
        reconcile(store, statistics, log, lambda examples: stage.step_by(len(examples)))
    count, _ = statistics.totals()
    statistics.close()
    log.close()
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--searches", type=int, default=2_000)
    parser.add_argument("--tenants", type=int, default=10, help="each with as many examples")
    parser.add_argument("--milvus-uri", default="", help="default: Milvus Lite in build/bench")
    parser.add_argument("--index", default="", help="default: IVF_FLAT; of a server: HNSW")
    parser.add_argument(
        "--accounts", action="store_true", help="also make a statistics of the store"
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
        accounts = make_accounts(settings, store, console) if options.accounts else 0
        grown = (process.memory_info().rss - before) / 2**20
        store.close()
    print(
        f"{options.examples} examples of {options.tenants} tenants, {index}: p50 {p50:.1f} ms, "
        f"p99 {p99:.1f} ms, {hits:.1f} candidates found; memory of the client grew by "
        f"{grown:.0f} MiB"
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
                "accounts": accounts,
                "client_grown_mib": grown,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
