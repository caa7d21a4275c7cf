#!/usr/bin/env python3
"""Show what EchoLM does: serve both LLMs on this machine, send live requests, compare.

Starts Triton, Milvus Lite and the two LLMs over a store of examples: past answers of the large
LLM, recorded with scripts/record_past.py. EchoLM answers some requests, of which a share is
rated; and then four policies get the same new requests on the same server: the large LLM alone,
the small one alone, a semantic cache, and EchoLM.
Prints a table and writes build/demo.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc_aio
from echolm.errors import EchoError, UnavailableError
from echolm.evaluation.environment import host, versions
from echolm.evaluation.load import Record, Run, closed_loop, open_loop, poisson_arrivals
from echolm.evaluation.past import WORKLOAD_SEED, recorded_past
from echolm.evaluation.policies import LLMPolicy, Neighbour, Policy, SemanticCache, nearest
from echolm.evaluation.progress import Stage
from echolm.evaluation.quality import (
    CACHE_THRESHOLDS,
    best_cache,
    offload_share,
    scores,
    sweep_cache,
    win_rate,
)
from echolm.evaluation.store import fill
from echolm.serving.build import built_root
from echolm.serving.serve import Endpoints, ServeOptions, prepare_embedder, running_server
from echolm.settings import Settings, load_settings
from echolm.workload import WorkItem, Workload, grade
from echolm_client import AsyncClient
from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
TITLES = {
    "always_large": "large LLM alone",
    "always_small": "small LLM alone",
    "semantic_cache": "semantic cache",
    "echolm": "EchoLM",
}


@dataclass(frozen=True)
class Result:
    """One policy's row of the table.

    Attributes:
        offload_share: share of requests that the large LLM did not answer.
        throughput: requests per second at saturation.
        p50_s, p99_s: latency at 70% of what the large LLM alone can serve.
    """

    policy: str
    requests: int
    failed: int
    mean_score: float
    win_rate: float
    offload_share: float
    throughput: float
    saturated_p50_s: float
    saturated_p99_s: float
    p50_s: float
    p99_s: float


class Demo:
    """The stages of the demo over one running server."""

    def __init__(
        self, options: argparse.Namespace, console: Console, client: AsyncClient, grpc_url: str
    ) -> None:
        self._options = options
        self._console = console
        self._client = client
        self._grpc = grpc_aio.InferenceServerClient(grpc_url)
        self._workload = Workload(seed=WORKLOAD_SEED)
        self.stage_seconds: float = options.stage_seconds
        self.large = LLMPolicy("always_large", client, "large_llm", "no-cache")
        self.small = LLMPolicy("always_small", client, "small_llm", "no-cache")
        self.echolm = LLMPolicy("echolm", client)

    async def close(self) -> None:
        await self._grpc.close()

    async def learn(self) -> dict[str, float]:
        """EchoLM answers for a time, and a share of its answers is rated."""
        options = self._options
        learning = self._workload.stream(options.learning, seed=options.seed, phase="live")
        dice = random.Random(options.seed)
        ratings: set[asyncio.Task[bool]] = set()
        with Stage(self._console, "EchoLM answers and is rated", len(learning)) as stage:

            def on_record(record: Record) -> None:
                stage.step()
                if record.reply is None or dice.random() >= options.rated:
                    return
                score = grade(record.item, record.reply.text)
                ratings.add(
                    asyncio.create_task(self._client.rate(record.reply.feedback_token, score))
                )

            run = await closed_loop(
                self.echolm, learning, options.concurrency, on_record, options.stage_seconds
            )
        await asyncio.gather(*ratings)
        await asyncio.sleep(2.0)  # the last ratings are learnt
        return {
            "history": options.history,
            "learning": len(run.records),
            "failed": run.failed,
            "ratings": len(ratings),
            "offload_share": offload_share(run),
        }

    async def saturate(
        self, policy: Policy, items: Sequence[WorkItem], limit_s: float = math.inf
    ) -> Run:
        """The policy's answers and its throughput with the server full."""
        title = f"{TITLES[policy.name]}: throughput"
        with Stage(self._console, title, len(items)) as stage:
            run = await closed_loop(policy, items, self._options.concurrency, stage.step, limit_s)
        if run.failed == len(run.records):
            reason = run.records[0].error if run.records else "none was sent"
            raise UnavailableError(f"{TITLES[policy.name]}: no request was answered: {reason}")
        return run

    async def steady(self, policy: Policy, items: Sequence[WorkItem], rate: float) -> Run:
        """The policy's latency under a load that the large LLM alone can just carry."""
        arrivals = poisson_arrivals(len(items), rate, self._options.seed)
        title = f"{TITLES[policy.name]}: latency at {rate:.1f}/s"
        with Stage(self._console, title, len(items)) as stage:
            return await open_loop(policy, items, arrivals, stage.step)

    async def neighbours(self, items: Sequence[WorkItem]) -> list[Neighbour]:
        """What a semantic cache would find for each request."""
        with Stage(self._console, "semantic cache: nearest answers", len(items)) as stage:
            found = []
            for item in items:
                found.append(await nearest(self._grpc, item.text))
                stage.step()
            return found

    def cache(self, threshold: float) -> SemanticCache:
        return SemanticCache(self._grpc, self.large, threshold)

    def live_items(self) -> list[WorkItem]:
        """The new requests."""
        options = self._options
        items = self._workload.stream(
            options.learning + options.requests, seed=options.seed, phase="live"
        )
        return items[options.learning :]

    def latency_items(self, rate: float) -> list[WorkItem]:
        count = max(20, int(rate * self._options.latency_seconds))
        return self._workload.stream(count, seed=self._options.seed + 2, phase="live")


def summarise(policy: str, run: Run, large_scores: Sequence[float], steady: Run) -> Result:
    own = scores(run)
    return Result(
        policy=policy,
        requests=len(run.records),
        failed=run.failed + steady.failed,
        mean_score=float(np.mean(own)),
        win_rate=win_rate(own, large_scores),
        offload_share=offload_share(run),
        throughput=run.steady_throughput,
        saturated_p50_s=run.latency_quantile(0.5),
        saturated_p99_s=run.latency_quantile(0.99),
        p50_s=steady.latency_quantile(0.5),
        p99_s=steady.latency_quantile(0.99),
    )


async def measure(
    options: argparse.Namespace, console: Console, endpoints: Endpoints
) -> dict[str, Any]:
    """All stages; returns what goes into the JSON file."""
    async with AsyncClient(endpoints.grpc_url, metrics_url=endpoints.metrics_url) as client:
        demo = Demo(options, console, client, endpoints.grpc_url)
        try:
            return await _measure(demo)
        finally:
            await demo.close()


async def _measure(demo: Demo) -> dict[str, Any]:
    past = await demo.learn()
    items = demo.live_items()
    # Before the large LLM runs alone, each policy has had a chance to warm its engines.
    await closed_loop(demo.large, items[:8], 8)
    await closed_loop(demo.small, items[:8], 8)

    # On a slow machine the time decides how many requests all policies get.
    runs = {"always_large": await demo.saturate(demo.large, items, demo.stage_seconds)}
    items = [record.item for record in runs["always_large"].records]
    runs["always_small"] = await demo.saturate(demo.small, items)
    large_scores = scores(runs["always_large"])
    found = await demo.neighbours(items)
    sweep = sweep_cache(
        [neighbour.similarity for neighbour in found],
        [
            grade(item, neighbour.response) if neighbour.similarity >= 0 else 0.0
            for item, neighbour in zip(items, found, strict=True)
        ],
        large_scores,
        CACHE_THRESHOLDS,
    )
    # A little over half, since retrieval leaves out an example at random now and then.
    point = best_cache(sweep, 0.52)
    cache = demo.cache(point.threshold)
    runs[cache.name] = await demo.saturate(cache, items)
    # Last, since it alone learns from what it answers.
    runs["echolm"] = await demo.saturate(demo.echolm, items)

    rate = 0.7 * runs["always_large"].steady_throughput
    latency_items = demo.latency_items(rate)
    policies: dict[str, Policy] = {
        "always_large": demo.large,
        "always_small": demo.small,
        cache.name: cache,
        "echolm": demo.echolm,
    }
    steady = {
        name: await demo.steady(policy, latency_items, rate) for name, policy in policies.items()
    }
    results = [summarise(name, runs[name], large_scores, steady[name]) for name in policies]
    kinds: dict[str, list[float]] = {}
    for record, own, large in zip(
        runs["echolm"].records, scores(runs["echolm"]), large_scores, strict=True
    ):
        kinds.setdefault(record.item.kind, []).append(own - large)
    return {
        "past": past,
        "policies": {result.policy: asdict(result) for result in results},
        "latency_rate": rate,
        "semantic_cache_sweep": [asdict(point) for point in sweep],
        "echolm_minus_large_by_kind": {
            kind: {"requests": len(v), "mean": float(np.mean(v))} for kind, v in kinds.items()
        },
        "errors": sorted(
            {r.error for run in (*runs.values(), *steady.values()) for r in run.records if r.error}
        )[:5],
    }


def print_table(console: Console, report: dict[str, Any]) -> None:
    policies, past = report["policies"], report["past"]
    large = policies["always_large"]
    # Narrow enough for 80 columns, which is also what a pipe or a CI log has.
    table = Table(
        title="The same new requests, the same server",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    for column in ("", "score", "win rate", "req/s", "gain", "p50 ms", "p99 ms", "offload"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, row in policies.items():
        table.add_row(
            TITLES[name],
            f"{row['mean_score']:.3f}",
            f"{row['win_rate']:.3f}",
            f"{row['throughput']:.1f}",
            f"{row['throughput'] / large['throughput']:.1f}",
            f"{row['p50_s'] * 1e3:.0f}",
            f"{row['p99_s'] * 1e3:.0f}",
            f"{row['offload_share']:.0%}",
            style="bold" if name == "echolm" else None,
        )
    console.print(table)
    console.print(
        f"Past: {past['history']} answers of the large LLM, then {past['learning']} of "
        f"EchoLM with {past['ratings']} ratings. {large['requests']} requests each. "
        "Win rate: (wins + ties/2) against the large LLM, "
        "0.5 is as good. req/s: at saturation; gain: over the large LLM alone. p50, p99: at "
        f"{report['latency_rate']:.1f} requests/s, 70% of what the large LLM alone can serve. "
        "Offload: share that it did not answer."
    )


def store_the_past(settings: Settings, count: int, console: Console) -> None:
    """Fill the store with the large LLM's past answers; every deployment has such a past."""
    past = recorded_past(count)
    settings.data_dir.mkdir(parents=True)
    prepare_embedder(settings, console.print)
    with Stage(console, "storing the large LLM's past answers", len(past)) as stage:
        fill(settings, [(e.item.text, e.response) for e in past], stage.step_by)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--history", type=int, default=3_000, help="past answers of the large LLM in the store"
    )
    parser.add_argument(
        "--learning", type=int, default=1_000, help="requests that EchoLM then answers"
    )
    parser.add_argument("--rated", type=float, default=0.2, help="share of those that is rated")
    parser.add_argument("--requests", type=int, default=400, help="new requests per policy")
    parser.add_argument(
        "--stage-seconds",
        type=float,
        default=90.0,
        help="most for --learning, and for the large LLM's --requests; a slow machine does fewer",
    )
    parser.add_argument("--concurrency", type=int, default=64, help="in flight at saturation")
    parser.add_argument("--latency-seconds", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=1, help="of the requests")
    parser.add_argument("--config", type=Path, default=None, help="an echolm.toml")
    parser.add_argument("--profile", default="local", help="of the model repository")
    parser.add_argument("--data-dir", type=Path, default=ROOT / "build" / "demo")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "demo.json")
    return parser.parse_args(argv)


def main() -> int:
    options = parse_arguments()
    console = Console()
    started = time.monotonic()
    # The past that EchoLM lives through is this run's own.
    shutil.rmtree(options.data_dir, ignore_errors=True)
    try:
        loaded = load_settings(options.config)
        settings: Settings = loaded.model_copy(update={"data_dir": options.data_dir})
        store_the_past(settings, options.history, console)
        serve = ServeOptions(
            profile=options.profile,
            repository_root=built_root(options.config, options.profile),
            http_port=0,
            grpc_port=0,
            metrics_port=0,
        )
        with running_server(settings, serve, progress=console.print) as endpoints:
            console.print(f"ready after {time.monotonic() - started:.0f} s")
            report = asyncio.run(measure(options, console, endpoints))
    except EchoError as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 1
    report["versions"] = versions()
    report["host"] = host()
    report["options"] = {k: v for k, v in vars(options).items() if isinstance(v, int | float)}
    report["seconds"] = time.monotonic() - started
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print_table(console, report)
    console.print(f"written to {options.output} after {report['seconds']:.0f} s")
    for error in report["errors"]:
        console.print(error, style="red", markup=False)
    return 1 if any(row["failed"] for row in report["policies"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
