"""What learns from the logs of other front doors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echolm.bandit.features import Featurizer
from echolm.bandit.learning import BanditLearning
from echolm.bandit.thompson import ThompsonSampling
from echolm.errors import ConfigurationError
from echolm.examples.admission import AdmissionPolicy
from echolm.examples.transfer import EmbedTexts
from echolm.judges.similarity import TextEmbedder
from echolm.learning.event_log import EventLog
from echolm.learning.learner import Learner
from echolm.llm.endpoint import LLMEndpoint
from echolm.load.bias import LoadBias
from echolm.load.tracker import LoadTracker
from echolm.past_traffic.cost import Budget
from echolm.past_traffic.replay import PastReplay
from echolm.past_traffic.state import OnlyProcess, PastTrafficState
from echolm.past_traffic.storing import PastExamples
from echolm.router.policy import Policy
from echolm.settings import Settings
from echolm.store.base import ExampleStore
from echolm.wiring.learning import build_learner
from echolm.wiring.llms import build_judge
from echolm.wiring.retrieval import build_selector, example_token_counter
from echolm.wiring.routing import build_bandit


def open_past_traffic_state(settings: Settings) -> PastTrafficState:
    """How far earlier runs came; UnavailableError if the file cannot be used."""
    return PastTrafficState(settings.past_traffic_path)


def only_process(settings: Settings) -> OnlyProcess:
    """The right to learn from past traffic; ConfigurationError if another process has it."""
    return OnlyProcess(Path(f"{settings.past_traffic_path}.lock"))


@dataclass(frozen=True)
class PastLearning:
    """The bandit in this process, and what brings it up to date with the learning log."""

    featurizer: Featurizer
    bandit: ThompsonSampling
    learner: Learner

    def qualities(
        self, requests: Sequence[str], embeddings: NDArray[np.float32]
    ) -> dict[str, list[float]]:
        """The quality of each LLM's answers to requests without examples."""
        none: list[tuple[()]] = [() for _ in requests]
        x = self.featurizer.many(list(requests), list(embeddings), none)
        columns = self.bandit.qualities(x).T.tolist()
        return dict(zip(self.bandit.arms, columns, strict=True))


def build_past_learning(settings: Settings, log: EventLog) -> PastLearning:
    """A bandit that has not learnt anything yet, as the routers have it."""
    featurizer, bandit = build_bandit(settings)
    learner = build_learner(settings, log, [BanditLearning(bandit, featurizer)])
    return PastLearning(featurizer, bandit, learner)


def build_past_examples(
    settings: Settings,
    store: ExampleStore,
    log: EventLog,
    embed: EmbedTexts,
    learning: PastLearning,
) -> PastExamples:
    """What stores past interactions; ConfigurationError if a screen needs a missing package."""
    admission = AdmissionPolicy(settings)
    return PastExamples(settings, store, log, admission, embed, learning.qualities)


def build_past_replay(
    settings: Settings,
    examples: PastExamples,
    learning: PastLearning,
    state: PastTrafficState,
    budget: Budget,
    endpoints: dict[str, LLMEndpoint],
    embedder: TextEmbedder,
    fingerprint: str,
    concurrent: int,
    dimension: int,
) -> PastReplay:
    """What replays past requests.

    Args:
        fingerprint: of the log.
        concurrent: answers and judgements at a time.
        dimension: of the embeddings.

    Raises:
        ConfigurationError: nothing judges answers, or there is one LLM only.
    """
    log, rng = examples.log, np.random.default_rng()
    # What replay asks of the LLMs is no load that it has to make room for.
    judge = build_judge(settings, endpoints, embedder, LoadTracker())
    if judge is None:
        raise ConfigurationError(
            f"learn-from: expected a judge in judging.kind, but {settings.no_judge}: nothing else "
            "says which answer is better; configure one, or give --no-replay to store examples only"
        )
    reference = settings.reference_llm.name
    candidates = [llm.name for llm in settings.llms if llm.name != reference]
    if not candidates:
        raise ConfigurationError(
            "learn-from: expected several LLMs in llms, got one: there is none to compare it "
            "with; give --no-replay to store examples only"
        )
    counter = example_token_counter(settings)
    selector = build_selector(settings, counter, rng, dimension)
    selection_learner = build_learner(settings, log, selector.learnables)
    bias = LoadBias(settings.routing, settings.llms, LoadTracker())

    def learn() -> None:
        learning.learner.catch_up()
        if selector.learnables:
            selection_learner.catch_up()

    return PastReplay(
        settings,
        endpoints,
        judge,
        Policy(learning.featurizer, learning.bandit, bias, rng),
        selector,
        examples,
        examples.embed,
        log,
        state,
        budget,
        reference,
        candidates,
        learn,
        fingerprint,
        concurrent,
    )
