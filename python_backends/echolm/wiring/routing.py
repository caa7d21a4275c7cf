"""The router: load, bandit, and the judging from which the bandit learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from echolm.bandit.arms import LogisticArm
from echolm.bandit.features import Featurizer
from echolm.bandit.learning import BanditLearning
from echolm.bandit.reuse import ReuseModel
from echolm.bandit.thompson import ThompsonSampling
from echolm.examples.usage import UsageRecorder
from echolm.judges.service import JudgingMetrics, JudgingService
from echolm.judges.similarity import TextEmbedder
from echolm.judges.stored import ReuseMetrics, StoredComparisons
from echolm.learning.learner import Learnable, Learner
from echolm.llm.endpoint import LLMClient
from echolm.load.bias import LoadBias
from echolm.load.table import LoadTable
from echolm.load.tracker import ServingLoad
from echolm.router.conversations import WarmConversations
from echolm.router.policy import Policy
from echolm.router.ports import AnswerObserver, InteractionSink, Observers, RouterMetrics
from echolm.router.service import RouterService
from echolm.router.stored import StoredAnswers
from echolm.router.warm_up import WarmUp
from echolm.settings import Settings
from echolm.wiring.learning import build_feedback_tokens, build_learner, open_event_log
from echolm.wiring.llms import build_endpoints, build_judge


def open_load_table(settings: Settings) -> LoadTable:
    """The load of all routers on this machine, counted together."""
    names = [llm.name for llm in settings.llms]
    return LoadTable(settings.load_table_path, names, settings.routing.load_half_life_s)


def build_bandit(settings: Settings) -> tuple[Featurizer, ThompsonSampling]:
    """The featurizer and the bandit, which knows its priors and nothing else."""
    routing, featurizer = settings.routing, Featurizer()
    arms = {
        llm.name: LogisticArm(
            featurizer.prior(
                llm, settings.prior_quality(llm), llm.prior_ratings or routing.prior_ratings
            ),
            routing.half_life_h * 3_600_000.0,
            routing.least_ratings,
            llm.revision,
        )
        for llm in settings.llms
    }
    costs = settings.relative_costs
    return featurizer, ThompsonSampling(
        arms, costs, routing.cost_weight, routing.exploration_floor, routing.exploration
    )


@dataclass(frozen=True)
class Router:
    """The router, and what its process has to run beside it.

    Attributes:
        learner: teaches the bandit what is in the learning log; it has not learnt anything yet.
        bias: what the load takes off each LLM's score now.
        warm_up: which LLMs may be drawn.
        comparisons: what compares stored answers; None if none are given.
    """

    service: RouterService
    learner: Learner
    bias: LoadBias
    usage: UsageRecorder
    warm_up: WarmUp
    comparisons: StoredComparisons | None


def build_router(
    settings: Settings,
    *,
    clients: Mapping[str, LLMClient],
    load: ServingLoad,
    embedder: TextEmbedder,
    sink: InteractionSink,
    metrics: RouterMetrics,
    judging_metrics: JudgingMetrics,
    reuse_metrics: ReuseMetrics,
) -> Router:
    """The router, with a judge (which gets the embedder) of answers if one is configured.

    Args:
        clients: the LLMs by name, by which judging asks them.

    Raises:
        ConfigurationError: the judge, the log or the signing key cannot be used as configured.
        UnavailableError: the learning log cannot be used.
    """
    log = open_event_log(settings)
    featurizer, bandit = build_bandit(settings)
    bias = LoadBias(settings.routing, settings.llms, load)
    warm_up = WarmUp(
        bandit,
        settings.reference_llm.name,
        settings.routing.warm_up_ratings,
        judging_metrics.warm_up_given_up,
    )
    conversations = WarmConversations(settings.routing.prefix_price)
    policy = Policy(featurizer, bandit, bias, np.random.default_rng(), warm_up, conversations)
    endpoints = build_endpoints(settings, clients)
    usage = UsageRecorder(log, settings.relative_costs)
    observers: list[AnswerObserver] = [usage]
    judge = build_judge(settings, endpoints, embedder, load)
    if len(endpoints) > 1:
        if judge is None:
            warm_up.give_up("no_judge", f"nothing judges answers, since {settings.no_judge}")
        else:
            parts = (judge, endpoints, policy, load, log, judging_metrics, warm_up)
            observers.append(JudgingService(settings, *parts))
    learnables: list[Learnable] = [BanditLearning(bandit, featurizer)]
    stored, comparisons = None, None
    if settings.routing.reuse_error > 0.0:
        model = ReuseModel(settings.routing.reuse_error)
        learnables.append(model)
        stored = StoredAnswers(model, np.random.default_rng())
        comparisons = StoredComparisons(settings, judge, load, log, reuse_metrics)
        observers.append(comparisons)
    service = RouterService(
        settings,
        endpoints,
        policy,
        build_feedback_tokens(settings),
        sink,
        load,
        metrics,
        Observers(observers),
        stored=stored,
        conversations=conversations,
    )
    learner = build_learner(settings, log, learnables)
    return Router(service, learner, bias, usage, warm_up, comparisons)
