"""What chooses the LLM: load, bandit, and the judging from which the bandit learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from echolm.bandit.arms import BayesianLinearArm
from echolm.bandit.features import Featurizer
from echolm.bandit.learning import BanditLearning
from echolm.bandit.thompson import ThompsonSampling
from echolm.judges.service import JudgingMetrics, JudgingService
from echolm.judges.similarity import TextEmbedder
from echolm.learning.event_log import EventLog
from echolm.learning.learner import Learner
from echolm.llm.endpoint import LLMEndpoint
from echolm.load.bias import LoadBias
from echolm.load.table import LoadTable
from echolm.router.policy import Policy
from echolm.router.service import AnswerObserver, NoObserver
from echolm.settings import Settings
from echolm.wiring.learning import build_learner
from echolm.wiring.llms import build_judge


def open_load_table(settings: Settings) -> LoadTable:
    """The load of all routers on this machine, counted together."""
    return LoadTable(
        settings.load_table_path,
        [llm.name for llm in settings.llms],
        settings.routing.load_half_life_s,
    )


def build_bandit(settings: Settings) -> tuple[Featurizer, ThompsonSampling]:
    """The featurizer and the bandit, which knows its priors and nothing else."""
    routing = settings.routing
    featurizer = Featurizer(
        routing.projection_dim, settings.retrieval.min_similarity, routing.similarity_saturation
    )
    arms = {
        llm.name: BayesianLinearArm(
            featurizer.prior_mean(llm),
            llm.prior_weight(routing.prior_ratings) / routing.noise**2,
            routing.noise,
            routing.discount,
            llm.revision,
        )
        for llm in settings.llms
    }
    costs = {llm.name: llm.cost for llm in settings.llms}
    return featurizer, ThompsonSampling(
        arms,
        costs,
        routing.cost_weight,
        routing.exploration_floor,
        routing.exploration,
    )


@dataclass(frozen=True)
class Routing:
    """What a router decides with.

    Attributes:
        policy: chooses the LLM.
        learner: teaches the policy's bandit what is in the learning log.
        load: of all routers on this machine.
        load_bias: what each LLM's score loses to load now.
    """

    policy: Policy
    learner: Learner
    load: LoadTable
    load_bias: LoadBias


def build_routing(settings: Settings, log: EventLog, rng: np.random.Generator) -> Routing:
    """What a router decides with; nothing is learnt yet.

    Args:
        rng: draws the LLMs.
    """
    load = open_load_table(settings)
    load_bias = LoadBias(settings.routing, settings.llms, load)
    featurizer, bandit = build_bandit(settings)
    return Routing(
        Policy(featurizer, bandit, load_bias, rng),
        build_learner(settings, log, [BanditLearning(bandit)]),
        load,
        load_bias,
    )


def build_judging(
    settings: Settings,
    endpoints: Mapping[str, LLMEndpoint],
    routing: Routing,
    log: EventLog,
    embedder: TextEmbedder,
    metrics: JudgingMetrics,
) -> AnswerObserver:
    """What judges a share of the answers; it does nothing for ``judging.kind`` ``none``.

    Raises:
        ConfigurationError: the grader or the prompt cannot be used.
    """
    judge = build_judge(settings, endpoints, embedder, routing.load)
    if judge is None:
        return NoObserver()
    return JudgingService(settings, judge, endpoints, routing.policy, routing.load, log, metrics)
