"""How EchoLM begins: a pair of LLMs of which nothing is known, a workload nothing was tuned on.

Each experiment takes a :class:`Lab` and a seed and gives an outcome; all run in simulated time
(:mod:`echolm_lab.experiments.simulation`).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from echolm.settings import Settings

from echolm_lab.experiments.outcome import Outcome
from echolm_lab.experiments.simulated_llms import PAIRS, JudgeSkill, Skill
from echolm_lab.experiments.simulation import CachedEmbedder, Record, Simulation
from echolm_lab.report.check import Check
from echolm_lab.tasks import Workload
from echolm_lab.tasks.catalogue import derived
from echolm_lab.tasks.past import WORKLOAD_SEED
from echolm_lab.tasks.second_workload import LabelledRequest

_PAST_SEED = 10_000  # added to a stream's seed: the past is another stream


class Requests(Protocol):
    """A source of requests."""

    def stream(self, n: int, seed: int) -> list[LabelledRequest]:
        """``n`` requests in their order of arrival."""


class DemoRequests:
    """The demo's own workload; what the small LLM saw in training it can answer alone."""

    def __init__(self) -> None:
        self._workload = Workload(seed=WORKLOAD_SEED)

    def stream(self, n: int, seed: int) -> list[LabelledRequest]:
        intents = self._workload.intents
        past = seed >= _PAST_SEED
        return [
            LabelledRequest(
                item.text,
                item.intent_id,
                "alone" if intents[item.intent_id].seen_by_small else "examples",
                item.answer,
            )
            for item in self._workload.stream(n, seed=seed, phase="past" if past else "live")
        ]


class BankingRequests:
    """Banking77: what customers of a bank ask; the category is the intent.

    Args:
        files: CSV with the columns ``text`` and ``category``.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        rows: dict[str, str] = {}
        for file in files:
            with file.open(encoding="utf-8", newline="") as lines:
                rows.update((row["text"], row["category"]) for row in csv.DictReader(lines))
        categories = sorted(set(rows.values()))
        self._items = [
            LabelledRequest(
                text,
                categories.index(category),
                "examples",
                f"This is case {derived(category).randrange(10_000)}, {category}.",
            )
            for text, category in sorted(rows.items())
        ]

    def stream(self, n: int, seed: int) -> list[LabelledRequest]:
        """``n`` different requests; those of a past are not among the others of its seed."""
        items = list(self._items)
        derived("banking", seed % _PAST_SEED).shuffle(items)
        return items[-n:] if seed >= _PAST_SEED else items[:n]


@dataclass(frozen=True)
class Lab:
    """What all experiments share.

    Attributes:
        settings: EchoLM's; the LLMs are replaced where an experiment has others.
        asked: share of the ratings that are asked for which callers give, beside the random ones.
    """

    settings: Settings
    embedder: CachedEmbedder
    requests: Requests
    pair: str = "mixed"
    asked: float = 0.0
    judging: JudgeSkill = field(default_factory=JudgeSkill)

    def start(
        self, seed: int, small: Skill, large: Skill, rated: float = 0.0, past: int = 0
    ) -> Simulation:
        """A service of two LLMs whose store holds a past of so many interactions."""
        weak, strong = sorted(self.settings.llms, key=lambda llm: llm.cost)
        # The defaults are the demo's LLMs, which cannot judge.
        llms = tuple(llm.model_copy(update={"can_judge": True}) for llm in (weak, strong))
        lab = replace(self, settings=self.settings.model_copy(update={"llms": llms}))
        return lab._start({weak.name: small, strong.name: large}, seed, rated, past)

    def start_of(
        self, llms: Sequence[Mapping[str, Any]], skills: Sequence[Skill], seed: int, rated: float
    ) -> Simulation:
        """A service of any LLMs, given as in ``echolm.toml``, with an empty store."""
        values = self.settings.model_dump() | {"llms": list(llms)}
        lab = replace(self, settings=Settings(**values))
        named = {llm.name: skill for llm, skill in zip(lab.settings.llms, skills, strict=True)}
        return lab._start(named, seed, rated, 0)

    def _start(self, skills: Mapping[str, Skill], seed: int, rated: float, past: int) -> Simulation:
        simulation = Simulation(
            self.settings,
            skills,
            self.embedder,
            seed,
            rated=rated,
            asked=self.asked,
            judging=self.judging,
        )
        if past:
            simulation.fill(self.requests.stream(past, _PAST_SEED + seed))
        return simulation


@dataclass(frozen=True)
class Window:
    """Figures of some requests of a service of two LLMs or more.

    Attributes:
        offloaded: share answered by another than the strongest LLM.
        oracle: share that an oracle would offload which knows the true qualities, the best
            examples of the store and the cost weight.
        of_oracle: ``offloaded`` over the share that such an oracle can offload at a quality that
            is no worse than EchoLM's.
        fitting: share of what the oracle would offload that was offloaded.
        win_rate: expected, against the strongest LLM.
        loss: mean quality of the strongest LLM less EchoLM's.
        routing_loss: what a router that knows the true qualities would gain, with the selected
            examples, in quality less cost.
        calibration_error: of the predicted quality of the answers, over 10 bins.
        helped: share of those requests that a stored example could help which got it.
    """

    requests: int
    offloaded: float
    oracle: float
    of_oracle: float
    fitting: float
    win_rate: float
    loss: float
    routing_loss: float
    calibration_error: float
    helped: float
    solicited: float


def measure(records: Sequence[Record], settings: Settings) -> Window:
    """The figures of some requests, at least one."""
    names = [llm.name for llm in settings.llms]
    strongest = names.index(settings.strongest_llm.name)
    costs = settings.routing.cost_weight * np.array(
        [settings.relative_costs[name] for name in names]
    )
    chosen = np.array([names.index(r.llm) for r in records])
    rows = np.arange(len(records))
    with_selected = np.array([[r.qualities[n] for n in names] for r in records])
    best = np.array([[r.best[n] for n in names] for r in records])
    predicted = np.array([[r.predicted[n] for n in names] for r in records])
    given, large = with_selected[rows, chosen], with_selected[:, strongest]
    offloaded = chosen != strongest
    ideal = (best - costs).argmax(axis=1) != strongest
    others = np.delete(best, strongest, axis=1).max(axis=1)
    # The oracle gives up least quality first, until it is as good as EchoLM was.
    lost = np.cumsum(np.sort(best[:, strongest] - others))
    room = (best[:, strongest] - given).sum() + 1e-9
    possible = np.flatnonzero(lost <= room)
    at_same = (possible[-1] + 1) / len(records) if len(possible) else 0.0
    gains = with_selected - costs
    known = np.array([r.known for r in records])
    helped = np.array([r.helped for r in records])
    return Window(
        len(records),
        float(offloaded.mean()),
        float(ideal.mean()),
        float(offloaded.mean() / at_same) if at_same else 1.0,
        float(offloaded[ideal].mean()) if ideal.any() else float("nan"),
        float(0.5 + (given - large).mean() / 2.0),
        float((large - given).mean()),
        float((gains.max(axis=1) - gains[rows, chosen]).mean()),
        calibration_error(predicted[rows, chosen], given),
        float(helped[known].mean()) if known.any() else float("nan"),
        float(np.mean([r.solicited for r in records])),
    )


def calibration_error(predicted: Any, true: Any, bins: int = 10) -> float:
    """Expected calibration error over bins of equal width."""
    predicted, true = np.asarray(predicted), np.asarray(true)
    at = np.minimum((predicted * bins).astype(int), bins - 1)
    errors = [
        abs(float((predicted[at == k] - true[at == k]).sum()))
        for k in range(bins)
        if (at == k).any()
    ]
    return sum(errors) / len(predicted)


def windows(records: Sequence[Record], settings: Settings, length: int) -> list[dict[str, Any]]:
    """The figures of one window after the other."""
    starts = range(0, len(records), length)
    return [vars(measure(records[k : k + length], settings)) for k in starts]


async def new_pair(lab: Lab, seed: int) -> Outcome:
    """A small LLM that is good with examples; no caller rates anything."""
    figures: dict[str, Any] = {}
    checks = []
    for past in (3_000, 0):
        simulation = lab.start(seed, *PAIRS["helped"], past=past)
        records = await simulation.serve(lab.requests.stream(2_000, seed))
        first, later = (measure(part, lab.settings) for part in (records[:1000], records[1000:]))
        store = "filled store" if past else "empty store"
        checks += [
            Check(f"{store}: offloaded of what fits, first 1,000", 0.8, first.fitting),
            Check(f"{store}: the same, next 1,000", 0.9, later.fitting),
            Check(f"{store}: win rate, first 1,000", 0.49, first.win_rate),
        ]
        figures[store] = windows(records, lab.settings, 250)
        figures[f"{store}: judgements"] = dict(simulation.judgements.counts)
    return Outcome(tuple(checks), figures)


async def bad_pair(lab: Lab, seed: int) -> Outcome:
    """A small LLM that is bad whatever it sees; no caller rates anything."""
    simulation = lab.start(seed, *PAIRS["bad"], past=3_000)
    records = await simulation.serve(lab.requests.stream(2_000, seed))
    whole = measure(records, lab.settings)
    return Outcome(
        (
            Check("offloaded", 0.02, whole.offloaded, "at_most"),
            Check("quality lost", 0.005, whole.loss, "at_most"),
        ),
        {"windows": windows(records, lab.settings, 250)},
    )


async def second_workload(lab: Lab, seed: int) -> Outcome:
    """An empty store, 10% rated."""
    simulation = lab.start(seed, *PAIRS[lab.pair], rated=0.1)
    records = await simulation.serve(lab.requests.stream(5_000, seed))
    last, later = (measure(part, lab.settings) for part in (records[1500:2000], records[2000:]))
    return Outcome(
        (
            Check("offload over an oracle's, requests 1,500 to 2,000", 0.9, last.of_oracle),
            Check("win rate, the same", 0.49, last.win_rate),
            Check("offload over an oracle's, requests 2,000 to 5,000", 0.9, later.of_oracle),
            Check("calibration error, the same", 0.05, later.calibration_error, "at_most"),
        ),
        {"windows": windows(records, lab.settings, 500)},
    )


async def lock_in(lab: Lab, seed: int) -> Outcome:
    """Four LLMs, of which a cheap one is as good as the prior's favourite; all is rated."""
    llms = [
        {
            "name": name,
            "cost": cost,
            "takes_examples": False,
            "prior_quality": quality,
            "chat_template": "echolm",
        }
        for name, cost, quality in (
            ("tiny", 0.01, 0.7),
            ("cheap", 0.034, 0.8),
            ("middle", 0.3, 0.8),
            ("large", 1.0, 0.9),
        )
    ]
    skills = [Skill.uniform(q, q) for q in (0.6, 0.925, 0.85, 0.934)]
    simulation = lab.start_of(llms, skills, seed, rated=1.0)
    records = await simulation.serve(lab.requests.stream(3_600, seed))
    shares = [
        {llm["name"]: sum(r.llm == llm["name"] for r in records[k : k + 600]) / 600 for llm in llms}
        for k in range(0, 3_600, 600)
    ]
    cheap = sum(r.llm == "cheap" for r in records) / len(records)
    return Outcome((Check("requests of the cheap one", 0.5, cheap),), {"windows of 600": shares})


async def as_good(lab: Lab, seed: int) -> Outcome:
    """A small LLM as good as the large one, or better, without examples."""
    checks, figures = [], {}
    for pair in ("equal", "perfect"):
        for rated in (0.05, 0.2, 1.0):
            simulation = lab.start(seed, *PAIRS[pair], rated=rated)
            records = await simulation.serve(lab.requests.stream(10_000, seed))
            name = f"{pair}, {rated:.0%} rated"
            whole = measure(records, lab.settings)
            checks.append(Check(f"{name}: offloaded", 0.5, whole.offloaded))
            figures[name] = windows(records, lab.settings, 1_000)
    return Outcome(tuple(checks), figures)


async def calibration(lab: Lab, seed: int) -> Outcome:
    """The predicted quality of 5,000 answers after 1,000, a fifth of them rated."""
    simulation = lab.start(seed, *PAIRS[lab.pair], rated=0.2, past=3_000)
    records = await simulation.serve(lab.requests.stream(6_000, seed))
    later = measure(records[1000:], lab.settings)
    return Outcome(
        (Check("calibration error", 0.05, later.calibration_error, "at_most"),),
        {"windows": windows(records, lab.settings, 1_000)},
    )


async def drift(lab: Lab, seed: int) -> Outcome:
    """The small LLM gets worse, and nobody says so: requests until half as many go to it."""
    checks, figures = [], {}
    for name, rated in (("judged only", 0.0), ("10% rated", 0.1)):
        simulation = lab.start(seed, *PAIRS["helped"], rated=rated, past=3_000)
        items = lab.requests.stream(9_000, seed)
        before = await simulation.serve(items[:3_000])
        small = min(lab.settings.llms, key=lambda llm: llm.cost).name
        simulation.llms[small].skill = Skill.uniform(0.1, 0.4)
        after = await simulation.serve(items[3_000:])
        usual = np.mean([r.llm == small for r in before[-500:]])
        lately = np.convolve([r.llm == small for r in after], np.ones(100) / 100, "valid")
        below = np.flatnonzero(lately <= usual / 2)
        noticed = float(below[0] + 100) if len(below) else float("inf")
        lost = measure(after, lab.settings).loss * len(after)
        checks.append(Check(f"{name}: requests", 2_000 if rated else 6_000, noticed, "at_most"))
        figures[name] = {
            "quality lost, in answers": lost,
            "windows": windows([*before, *after], lab.settings, 500),
        }
    return Outcome(tuple(checks), figures)


EXPERIMENTS: dict[str, Callable[[Lab, int], Coroutine[Any, Any, Outcome]]] = {
    experiment.__name__: experiment
    for experiment in (new_pair, bad_pair, second_workload, lock_in, as_good, calibration, drift)
}
"""By name."""
