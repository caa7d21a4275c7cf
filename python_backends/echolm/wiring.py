"""Settings to objects: the one place that knows how the parts of EchoLM fit together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from echolm.bandit.arms import BayesianLinearArm
from echolm.bandit.features import Featurizer
from echolm.bandit.thompson import ThompsonSampling
from echolm.judges.base import Judge
from echolm.judges.grader import GraderJudge, load_grader
from echolm.judges.llm import LLMJudge, read_prompt
from echolm.judges.similarity import SimilarityJudge, TextEmbedder
from echolm.learning.event_log import EventLog
from echolm.llm.client import LLMClient
from echolm.llm.contracts import CONTRACTS
from echolm.llm.endpoint import LLMEndpoint
from echolm.llm.templates import template
from echolm.llm.tokens import TokenCounter, token_counter
from echolm.llm.triton_client import Channels
from echolm.load.tracker import ServingLoad
from echolm.primitives import (
    Completion,
    OnText,
    Sampling,
)
from echolm.retrieval.prefix_index import SharedPrefixIndex
from echolm.retrieval.selector import ExampleSelector
from echolm.retrieval.threshold import AdaptiveThreshold
from echolm.retrieval.utility import LearnedUtility, SimilarityUtility
from echolm.settings import LLMSettings, Settings


def build_endpoints(settings: Settings, clients: Mapping[str, LLMClient]) -> dict[str, LLMEndpoint]:
    """The configured LLMs as targets, by name."""
    return {
        llm.name: LLMEndpoint(
            llm, clients[llm.name], template(llm.prompt_template), token_counter(llm.tokenizer)
        )
        for llm in settings.llms
    }


def build_bandit(settings: Settings) -> tuple[Featurizer, ThompsonSampling]:
    """The featurizer and the bandit with its priors, as configured."""
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


def build_selector(
    settings: Settings,
    tokens: TokenCounter,
    rng: np.random.Generator,
    prefix_index: SharedPrefixIndex | None = None,
) -> ExampleSelector:
    """The selector as configured."""
    retrieval = settings.retrieval
    return ExampleSelector(
        retrieval,
        LearnedUtility(retrieval.utility_discount)
        if retrieval.utility == "learned"
        else SimilarityUtility(),
        AdaptiveThreshold(
            retrieval.threshold,
            retrieval.threshold_exploration,
            {llm.name: settings.routing.cost_weight * llm.cost for llm in settings.llms},
            retrieval.token_price,
        ),
        tokens,
        rng,
        prefix_index,
    )


@dataclass(frozen=True)
class _Counted:
    """An LLM whose generations count as load."""

    client: LLMClient
    name: str
    load: ServingLoad

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_text: OnText | None
    ) -> Completion:
        with self.load.serving(self.name):
            return await self.client.generate(request_id, prompt, sampling, on_text)


def build_judge(
    settings: Settings,
    targets: Mapping[str, LLMEndpoint],
    embedder: TextEmbedder,
    load: ServingLoad,
) -> Judge | None:
    """The judge of ``judging.kind``; None for ``none``.

    Raises:
        ConfigurationError: the grader or the prompt cannot be used.
    """
    judging = settings.judging
    if judging.kind == "similarity":
        return SimilarityJudge(embedder, judging.similarity_floor)
    if judging.kind == "grader":
        return GraderJudge(load_grader(judging.grader))
    if judging.kind == "llm":
        target = targets[judging.judge_llm or settings.strongest_llm.name]
        return LLMJudge(
            _Counted(target.client, target.settings.name, load),
            target.template,
            target.tokens,
            read_prompt(judging.prompt),
            judging.max_judgement_tokens,
        )
    return None


def open_event_log(settings: Settings) -> EventLog:
    """The log that ``event_log`` names: Redis for a URL, else SQLite.

    Raises:
        ConfigurationError: the Redis server would lose what it has acknowledged.
        UnavailableError: the SQLite file cannot be used.
    """
    # Imported here, so that a process loads only the driver that it needs.
    path = settings.event_log_path
    if path is None:
        from echolm.learning.redis_log import RedisEventLog

        return RedisEventLog(settings.event_log, settings.learning)
    from echolm.learning.sqlite_log import SQLiteEventLog

    return SQLiteEventLog(path)


def build_llm_clients(settings: Settings) -> dict[str, LLMClient]:
    """A client for each configured LLM, by its name."""
    channels = Channels()

    def client(llm: LLMSettings) -> LLMClient:
        return CONTRACTS[llm.contract](channels, llm.url or settings.grpc_url, llm.model)

    return {llm.name: client(llm) for llm in settings.llms}


def needed_snapshots(settings: Settings) -> frozenset[str]:
    """Names, without fingerprints, of the snapshots without which nothing may be removed."""
    retrieval = settings.retrieval
    parts = ["threshold"] if retrieval.adaptive_threshold else []
    parts += ["utility"] if retrieval.utility == "learned" else []
    return frozenset({"bandit", "statistics"} | ({"+".join(parts)} if parts else set()))
