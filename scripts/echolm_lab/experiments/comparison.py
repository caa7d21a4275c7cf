"""EchoLM against the alternatives on one running server: quality, throughput, latency.

Every part of it is a JSON value of its own, so that a measurement that was cut goes on where it
was: what is in its file is not measured again.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from echolm.serving.serve import prepare_embedder
from echolm.settings import Settings
from rich.console import Console

from echolm_lab.experiments.baselines import static_routing, sweep
from echolm_lab.experiments.bench import FLUSH_S, Site, warm_up
from echolm_lab.experiments.load import Run, offload_share
from echolm_lab.experiments.scoring import ItemScores, Scoring
from echolm_lab.experiments.store import fill
from echolm_lab.policies.base import AnswerPolicy
from echolm_lab.policies.nearest import CopyNearest
from echolm_lab.policies.semantic_cache import SemanticCache, best_cache
from echolm_lab.report.progress import Stage
from echolm_lab.report.quality import HOLDS_QUALITY, win_rate
from echolm_lab.report.tables import TITLES
from echolm_lab.tasks import Item, PastInteraction, Workload
from echolm_lab.tasks.past import WORKLOAD_SEED

_CHOOSING = ("small_with_examples", "echolm")
"""Policies under which the server chooses examples."""
_PATH = {
    "selection_s": "echolm_selection_seconds_sum",
    "decision_s": "echolm_decision_seconds_sum",
    "request_s": "echolm_request_latency_seconds_sum",
}
"""Seconds until the LLM is called, of which some are the router's choice, and in all, by metric."""
LOAD = 0.7
"""Share of what the large LLM alone can serve, under which latencies are measured."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        learning: requests that EchoLM answers before it is measured.
        rated: share of those that is rated.
        requests: new ones for each policy.
        stage_seconds: most for the learning, and for the large LLM's requests.
        latency_seconds: for each policy.
        seed: of the requests.
    """

    learning: int = 1_000
    rated: float = 0.2
    requests: int = 400
    stage_seconds: float = 90.0
    latency_seconds: float = 25.0
    seed: int = 1


class Kept:
    """Finished parts of a measurement, in a JSON file.

    Args:
        file: goes on with what is in it; None: nothing is kept.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self.parts: dict[str, Any] = {}
        if file is not None and file.is_file():
            self.parts = json.loads(file.read_text(encoding="utf-8"))

    async def part(self, name: str, measure: Callable[[], Awaitable[Any]]) -> Any:
        """The part as it was kept, else as it is measured now."""
        if name not in self.parts:
            self.add(name, await measure())
        return self.parts[name]

    def add(self, name: str, value: Any) -> None:
        """Keep a part."""
        self.parts[name] = value
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._file.with_suffix(".partial")
            partial.write_text(json.dumps(self.parts, indent=1) + "\n", encoding="utf-8")
            partial.replace(self._file)


class Questions(Protocol):
    """What the policies are asked."""

    @property
    def learning(self) -> Sequence[Item]:
        """What EchoLM answers before it is measured."""

    @property
    def items(self) -> Sequence[Item]:
        """New requests for each policy."""

    def steady(self, count: int) -> Sequence[Item]:
        """At most so many others, under which latencies are measured."""


class DemoQuestions:
    """Requests of the demo workload."""

    def __init__(self, plan: Plan) -> None:
        self._workload, self._seed = Workload(seed=WORKLOAD_SEED), plan.seed
        count = plan.learning + plan.requests
        live = self._workload.stream(count, seed=plan.seed, phase="live")
        self.learning: Sequence[Item] = live[: plan.learning]
        self.items: Sequence[Item] = live[plan.learning :]

    def steady(self, count: int) -> Sequence[Item]:
        return self._workload.stream(count, seed=self._seed + 2, phase="live")


class PolicyComparison:
    """The parts of a comparison over one running server.

    Args:
        questions: None: those of the demo workload.
        scoring: None: the items' own scores, which are ratings, too; a judge's are none.
    """

    def __init__(
        self,
        site: Site,
        plan: Plan,
        kept: Kept | None = None,
        questions: Questions | None = None,
        scoring: Scoring | None = None,
    ) -> None:
        self._site = site
        self._plan = plan
        self._kept = kept or Kept()
        self._questions = questions or DemoQuestions(plan)
        self._scoring = scoring or ItemScores()
        self._items = self._questions.items
        self._policies: dict[str, AnswerPolicy] = {
            "always_large": site.large(),
            "always_small": site.small(),
            "small_with_examples": site.small_with_examples(),
            "copy_nearest": CopyNearest(site.nearest),
            "echolm": site.echolm(),
        }

    async def run(self, labelled: Sequence[PastInteraction] = ()) -> dict[str, Any]:
        """All policies; with labelled interactions the static router, too."""
        site, parts, policies = self._site, self._kept.parts, self._policies
        past = await self._kept.part("past", self._learn)
        # Each LLM has had a chance to warm its engine.
        await warm_up(site, self._items[:8])

        large = await self._saturated("always_large", self._plan.stage_seconds)
        # On a slow machine the time decides how many requests all policies get.
        self._items = self._items[: large["requests"]]
        await self._saturated("always_small")
        await self._saturated("copy_nearest")
        points = await self._kept.part("semantic_cache_sweep", self._sweep)
        policies["semantic_cache"] = SemanticCache(site.nearest, site.large(), points["threshold"])
        await self._saturated("semantic_cache")
        if labelled:
            if not {"static_router: saturated", "static_router: steady"} <= set(parts):
                policies["static_router"] = await static_routing(site, labelled, HOLDS_QUALITY)
            await self._saturated("static_router")
        # Last, since it alone learns from what it answers.
        await self._saturated("echolm")

        names = [name for name in TITLES if f"{name}: saturated" in parts]
        rate = LOAD * large["throughput"]
        return {
            "past": past,
            "policies": {name: self._row(name, await self.steady(name, rate)) for name in names},
            "latency_rate": rate,
            "semantic_cache_sweep": points["points"],
            "echolm_minus_large_by_kind": self._by_kind(),
            "scores": self._scoring.about,
            "errors": self._errors(),
        }

    async def steady(self, name: str, rate: float) -> dict[str, Any]:
        """A policy's latency under Poisson arrivals of a rate per second."""
        items = self._questions.steady(max(20, int(rate * self._plan.latency_seconds)))

        async def measure() -> dict[str, Any]:
            chooses = name in _CHOOSING
            before = await self._path_seconds() if chooses else {}
            title = f"{TITLES[name]}: latency at {rate:.1f}/s"
            policy = self._policies[name]
            run = await self._site.steady(policy, items, rate, self._plan.seed, title)
            after = await self._path_seconds() if chooses else {}
            path = {k: (after[k] - before[k]) / max(1, len(run.records)) for k in after}
            return {**figures(run, self._site.large_llm), **path}

        measured: dict[str, Any] = await self._kept.part(f"{name}: steady", measure)
        return measured

    async def _learn(self) -> dict[str, float]:
        """EchoLM answers for a time, and a share of its answers is rated."""
        learning = self._questions.learning
        if not learning:
            return {"learning": 0, "failed": 0, "ratings": 0, "offload_share": 0.0}
        dice = random.Random(self._plan.seed)
        learnt = await self._site.answer_and_rate(
            learning,
            lambda reply: dice.random() < self._plan.rated,
            "EchoLM answers and is rated",
            limit_s=self._plan.stage_seconds,
        )
        return {
            "learning": len(learnt.run.records),
            "failed": learnt.run.failed,
            "ratings": learnt.total,
            "offload_share": offload_share(learnt.run, self._site.large_llm),
        }

    async def _saturated(self, name: str, limit_s: float = math.inf) -> dict[str, Any]:
        """A policy's answers and its throughput with the server full."""

        async def measure() -> dict[str, Any]:
            title = f"{TITLES[name]}: throughput"
            policy = self._policies[name]
            run = await self._site.answer(policy, self._items, title, limit_s=limit_s)
            answers = [None if r.reply is None else r.reply.text for r in run.records]
            scores = await self._scores(name, [r.item for r in run.records], answers)
            return {**figures(run, self._site.large_llm), "scores": scores, "answers": answers}

        measured: dict[str, Any] = await self._kept.part(f"{name}: saturated", measure)
        return measured

    async def _scores(
        self, name: str, items: Sequence[Item], answers: Sequence[str | None]
    ) -> list[float]:
        """What a policy's answers are worth."""
        large = self._kept.parts.get("always_large: saturated")
        reference = answers if large is None else large["answers"]
        if not self._scoring.takes_time:
            return await self._scoring.scores(items, answers, reference, lambda: None)
        with Stage(self._site.console, f"{TITLES[name]}: scores", len(items)) as stage:
            return await self._scoring.scores(items, answers, reference, stage.step)

    async def _path_seconds(self) -> dict[str, float]:
        """What all requests so far have spent."""
        await asyncio.sleep(FLUSH_S)  # the metrics page catches up
        stats = await self._site.client.stats()
        return {key: stats.value(metric) for key, metric in _PATH.items()}

    async def _sweep(self) -> dict[str, Any]:
        large, copied = (
            self._kept.parts[f"{name}: saturated"]["scores"]
            for name in ("always_large", "copy_nearest")
        )
        points = await sweep(self._site, self._items, large, copied)
        best = best_cache(points)
        return {"threshold": best.threshold, "points": [asdict(point) for point in points]}

    def _row(self, name: str, steady: Mapping[str, Any]) -> dict[str, Any]:
        """One policy: quality and throughput at saturation, latency under the fixed load."""
        full = self._kept.parts[f"{name}: saturated"]
        large = self._kept.parts["always_large: saturated"]["scores"]
        return {
            "policy": name,
            "requests": full["requests"],
            "failed": full["failed"] + steady["failed"],
            "mean_score": float(np.mean(full["scores"])),
            "win_rate": win_rate(full["scores"], large),
            "offload_share": full["offload_share"],
            "throughput": full["throughput"],
            "saturated_p50_s": full["p50_s"],
            "saturated_p99_s": full["p99_s"],
            **{key: steady[key] for key in ("p50_s", "p99_s")},
            **{key: steady[key] for key in _PATH if key in steady},
        }

    def _errors(self) -> list[str]:
        measured = [part for name, part in self._kept.parts.items() if ": " in name]
        return sorted({error for part in measured for error in part["errors"]})[:5]

    def _by_kind(self) -> dict[str, dict[str, float]]:
        echolm, large = (
            self._kept.parts[f"{name}: saturated"]["scores"] for name in ("echolm", "always_large")
        )
        kinds: dict[str, list[float]] = {}
        for item, score, large_score in zip(self._items, echolm, large, strict=True):
            kinds.setdefault(item.kind, []).append(score - large_score)
        return {k: {"requests": len(v), "mean": float(np.mean(v))} for k, v in kinds.items()}


def figures(run: Run, large: str) -> dict[str, Any]:
    """A run as a JSON value; latencies in seconds, throughput in requests per second.

    Args:
        large: name of the large LLM.
    """
    answered = [record for record in run.records if record.reply is not None]
    return {
        "requests": len(run.records),
        "failed": run.failed,
        "offload_share": offload_share(run, large),
        "examples": sum(r.reply.num_examples for r in answered if r.reply) / max(1, len(answered)),
        "throughput": run.steady_throughput,
        "p50_s": run.latency_quantile(0.5),
        "p99_s": run.latency_quantile(0.99),
        "errors": sorted({record.error for record in run.records if record.error})[:5],
    }


def store_past(
    settings: Settings,
    past: Sequence[tuple[str, str]],
    console: Console,
    title: str = "storing the large LLM's past answers",
    system_prompt: str = "",
) -> None:
    """Fill a new store with past requests and their answers; every deployment has such a past."""
    settings.data_dir.mkdir(parents=True)
    prepare_embedder(settings, console.print)
    with Stage(console, title, len(past)) as stage:
        fill(settings, past, stage.step_by, system_prompt)
