"""A share of the stored examples is corrupted: does the utility model find out which?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from echolm.embedding.texts import TextEmbedder
from echolm.learning.learner import Learner
from echolm.learning.request_sample import NewestStatistics
from echolm.llm.tokens import EstimatedTokens
from echolm.primitives import Candidate
from echolm.retrieval.features import ExampleTexts, featurize
from echolm.retrieval.relevance import SimilarityScale
from echolm.retrieval.utility import LearnedUtility
from echolm.settings import Settings
from echolm.wiring.learning import open_event_log
from echolm.wiring.retrieval import build_utility

from echolm_lab.experiments.bench import Bench, RatedRun
from echolm_lab.experiments.load import scores
from echolm_lab.experiments.outcome import Outcome
from echolm_lab.policies.similar_examples import SIMILAR_ONLY
from echolm_lab.report.check import Check
from echolm_lab.report.curves import auc
from echolm_lab.tasks import PastInteraction, WorkItem, grade
from echolm_lab.tasks.corruption import corrupt

_GOOD = 0.9
_QUALITY = 0.95


async def run(bench: Bench) -> Outcome:
    """Scores with and without corrupted examples, and the utility model's ranking of both kinds."""
    sizes, clean = bench.sizes, bench.past()
    corrupted = corrupt(clean, sizes.corrupted, bench.seed)
    stream = bench.stream(sizes.corruption_learning + sizes.requests)
    new = stream[sizes.corruption_learning :]
    learning = stream[: sizes.corruption_learning]
    means: dict[str, dict[str, float]] = {"similar_examples": {}, "echolm": {}}
    ranking: dict[str, float] = {}
    for name, interactions in (("clean", clean), ("corrupted", corrupted)):
        async with bench.serve(f"similar-{name}", interactions, SIMILAR_ONLY) as site:
            answers = await site.answer(
                site.small_with_examples(), new, f"similar_examples, {name} store"
            )
        means["similar_examples"][name] = float(np.mean(scores(answers)))
        dice = random.Random(bench.seed)
        async with bench.serve(f"echolm-{name}", interactions) as site:
            rated: RatedRun = await site.answer_and_rate(
                learning,
                lambda reply, dice=dice: dice.random() < sizes.corruption_rated,  # type: ignore[misc]
                f"echolm learns, {name} store",
            )
            answers = await site.answer(site.echolm(), new, f"echolm, {name} store")
        means["echolm"][name] = float(np.mean(scores(answers)))
        if name == "corrupted":
            ranking = rank(site.settings, interactions, new) | {"ratings": rated.total}
    kept = {policy: m["corrupted"] / max(m["clean"], 1e-9) for policy, m in means.items()}
    return Outcome(
        checks=(
            Check("AUC of the utility model, helpful over harmful", 0.90, ranking["utility"]),
            Check("echolm: score kept with corrupted examples", 0.97, kept["echolm"]),
        ),
        figures={
            "ranking": ranking,
            "mean_score": means,
            "score_kept": kept,
            "corrupted_examples": sum(e.corruption is not None for e in corrupted),
        },
    )


def rank(
    settings: Settings, interactions: Sequence[PastInteraction], items: Sequence[WorkItem]
) -> dict[str, Any]:
    """How well the learnt utility, an untaught one and cosine rank helpful over harmful examples.

    Pairs are new requests and stored examples of their intent among the candidates of stage 1.
    Helpful are right answers as the large LLM gave them; harmful are those that were corrupted.

    Args:
        settings: those of the server that has learnt; its log is replayed here.
        interactions: what its store held at the start, ids 1, 2, ...
    """
    embed = TextEmbedder(settings.embedding)
    learnt, newest = build_utility(settings), NewestStatistics(embed.dimension)
    assert isinstance(learnt, LearnedUtility)
    log = open_event_log(settings)
    try:
        Learner(log, [learnt, newest]).catch_up()
    finally:
        log.close()
    cosines = embed([i.text for i in items]) @ embed([e.item.text for e in interactions]).T
    texts = ExampleTexts(EstimatedTokens())
    untaught = build_utility(settings)
    scale = SimilarityScale.of(newest.statistics)
    least = settings.retrieval.min_similarity
    least = scale.floor if least is None else least
    values: dict[str, tuple[list[float], list[float]]] = {
        name: ([], []) for name in ("utility", "utility_untaught", "cosine")
    }
    for item, row in zip(items, cosines, strict=True):
        nearest = np.argsort(-row, kind="stable")[: settings.retrieval.top_n].tolist()
        candidates = [
            Candidate(
                k + 1,
                interactions[k].item.text,
                interactions[k].response,
                "public",
                _QUALITY,
                float(row[k]),
            )
            for k in nearest
            if row[k] >= least
        ]
        if not candidates:
            continue
        batch = featurize([item.text], [candidates], texts, scale)
        scored = {
            "utility": learnt.score(batch)[0],
            "utility_untaught": untaught.score(batch)[0],
            "cosine": batch.similarity[0],
        }
        for column, candidate in enumerate(candidates):
            interaction = interactions[candidate.id - 1]
            if interaction.item.intent_id != item.intent_id:
                continue
            harmful = interaction.corruption is not None
            if not harmful and grade(interaction.item, interaction.response) < _GOOD:
                continue  # the large LLM's own mistake: neither
            for name, by_column in scored.items():
                values[name][harmful].append(float(by_column[column]))
    helpful, harmful_pairs = values["utility"]
    return {
        **{name: auc(*pair) for name, pair in values.items()},
        "helpful_pairs": len(helpful),
        "harmful_pairs": len(harmful_pairs),
        "events": learnt.updates,
    }
