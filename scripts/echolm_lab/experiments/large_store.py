"""A large example store of random vectors: filled, searched, followed by statistics."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from echolm.examples.consistency import reconcile
from echolm.examples.statistics import StatisticsTable
from echolm.primitives import Candidate
from echolm.settings import RetrievalSettings, Settings
from echolm.store.base import Example, Query
from echolm.store.columns import FOUND_FIELDS
from echolm.store.milvus import MilvusStore
from echolm.wiring.learning import open_event_log
from numpy.typing import NDArray
from pymilvus import MilvusClient
from rich.console import Console

from echolm_lab.report.progress import Stage

DIMENSION = 384
CLUSTERS, SPREAD = 2_000, 0.04
"""Vectors lie around these centres, noise per component: cosine about 0.6 within a cluster."""
_BATCH = 1_000
_NOW_MS = 1_790_000_000_000
_INDEXING_TIMEOUT_S = 3_600.0
_COMPARED, _ROWS = 200, 8  # searches whose CPU time is compared, and rows in each


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
    queried = vectors(rng, centres, searches)
    took, found = [], 0
    for k in range(-searches // 10, searches):
        query = Query.of(f"tenant-{k % tenants}", "")
        started = time.perf_counter()
        [row] = store.search(queried[k : k + 1] if k >= 0 else queried[:1], [query], top_n, _NOW_MS)
        if k >= 0:
            took.append(1e3 * (time.perf_counter() - started))
            found += len(row)
    p50, p99 = np.quantile(took, (0.5, 0.99))
    return float(p50), float(p99), found / searches


def compare_cpu(
    store: MilvusStore,
    settings: RetrievalSettings,
    tenants: int,
    centres: NDArray[np.float32],
    pairs: int = 5,
) -> list[float]:
    """CPU time of this process for the store's searches over that for pymilvus' own.

    In turn, so that a busy machine is busy for both.

    Args:
        pairs: how often they are compared.
    """
    client = MilvusClient(uri=settings.milvus_uri, timeout=10)
    queried = vectors(np.random.default_rng(3), centres, _COMPARED * _ROWS)
    starts = [(k, Query.of(f"tenant-{k % tenants}", "")) for k in range(_COMPARED)]

    def of_store(rows: NDArray[np.float32], query: Query) -> object:
        return store.search(rows, [query] * _ROWS, settings.top_n, _NOW_MS)

    def of_pymilvus(rows: NDArray[np.float32], query: Query) -> object:
        found = client.search(
            settings.collection,
            data=list(rows),
            anns_field="embedding",
            filter=f"scope == {query.scope} and expires_at_ms > {_NOW_MS}",
            limit=settings.top_n,
            output_fields=list(FOUND_FIELDS),
            search_params={"params": dict(settings.search_params)},
            timeout=10,
            consistency_level="Bounded",
        )
        return [
            [Candidate(id=hit["id"], similarity=hit["distance"], **hit["entity"]) for hit in row]
            for row in found
        ]

    def seconds(search: Callable[[NDArray[np.float32], Query], object]) -> float:
        started = time.process_time()
        for k, query in starts:
            search(queried[k * _ROWS : (k + 1) * _ROWS], query)
        return time.process_time() - started

    ratios = [seconds(of_store) / seconds(of_pymilvus) for _ in range(pairs)]
    client.close()
    return ratios


def make_statistics(settings: Settings, store: MilvusStore, console: Console) -> int:
    """Begin statistics of all examples in the settings' directory; gives how many there are."""
    for left in settings.data_dir.glob(f"{settings.statistics_path.name}*"):
        left.unlink()
    log = open_event_log(settings)
    statistics = StatisticsTable(settings.statistics_path, settings.relative_costs)
    with Stage(console, "example statistics", store.count()) as stage:
        reconcile(store, statistics, log, lambda examples: stage.step_by(len(examples)))
    count, _ = statistics.totals()
    statistics.close()
    log.close()
    return count
