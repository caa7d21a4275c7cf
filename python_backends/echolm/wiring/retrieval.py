"""The example store and the selection from what it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from echolm.embedding.spec import EmbedderSpec
from echolm.learning.request_sample import NewestStatistics
from echolm.llm.tokens import TokenCounter, token_counter
from echolm.retrieval.count import ExampleCount
from echolm.retrieval.lookalikes import nothing_unseen
from echolm.retrieval.prefix_index import SharedPrefixIndex
from echolm.retrieval.selector import ExampleSelector
from echolm.retrieval.utility import LearnedUtility, SimilarityUtility, UtilityModel
from echolm.settings import Settings

HOUR_MS = 3_600_000.0

_KNOWN = 65_536  # texts of which it is remembered how much the embedding model sees

if TYPE_CHECKING:
    from echolm.embedding.texts import TextEmbedder
    from echolm.store.milvus import MilvusStore


def open_store(settings: Settings, wait: bool = False) -> MilvusStore:
    """The example store; ``wait`` says that a Milvus that does not answer now may come later.

    Raises:
        ConfigurationError: the embedding model is missing, or the collection is another model's.
        UnavailableError: Milvus does not answer, and ``wait`` is False.
    """
    from echolm.store.milvus import MilvusStore

    embedding = EmbedderSpec.read(settings.embedding.model_dir)
    return MilvusStore(settings.retrieval, embedding.name, embedding.dimension, wait)


def build_text_embedder(settings: Settings) -> TextEmbedder:
    """Tokenizer and embedding model in this process; ConfigurationError if they are missing."""
    from echolm.embedding.texts import TextEmbedder

    return TextEmbedder(settings.embedding)


def unseen_share(settings: Settings) -> Callable[[str], float]:
    """Tells which share of a text's tokens the embedding model does not get to see.

    ConfigurationError if its files are missing.
    """
    from echolm.embedding.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.load(settings.embedding.model_dir)
    known: dict[int, float] = {}  # by hash, since the same examples are found again and again

    def unseen(text: str) -> float:
        share = known.get(hash(text))
        if share is None:
            if len(known) >= _KNOWN:
                known.clear()
            share = known[hash(text)] = tokenizer.unseen(text)
        return share

    return unseen


def open_prefix_index(settings: Settings) -> SharedPrefixIndex:
    """The index of prompt beginnings that all retrievers of this machine share."""
    return SharedPrefixIndex(settings.prefix_index_path)


def example_token_counter(settings: Settings) -> TokenCounter:
    """Counts the tokens of examples as the LLM of the shortest context that takes any does."""
    takers = [llm for llm in settings.llms if llm.takes_examples] or [settings.default_llm]
    return token_counter(min(takers, key=lambda llm: llm.context_length).tokenizer)


def build_selector(
    settings: Settings,
    tokens: TokenCounter,
    rng: np.random.Generator,
    dimension: int,
    prefix_index: SharedPrefixIndex | None = None,
    unseen: Callable[[str], float] = nothing_unseen,
) -> ExampleSelector:
    """What chooses examples from candidates.

    Args:
        tokens: counts the tokens of examples.
        rng: draws the examples that are dropped and the numbers of them that are tried.
        dimension: of the embeddings.
        prefix_index: shared with other processes; None: that of this process only.
        unseen: the share of a transcript that the embedding model does not get to see.
    """
    retrieval = settings.retrieval
    count = ExampleCount(
        retrieval.num_examples,
        retrieval.max_examples,
        retrieval.num_examples_exploration,
        {n: settings.routing.cost_weight * c for n, c in settings.relative_costs.items()},
        retrieval.token_price,
        retrieval.utility_half_life_h * HOUR_MS,
    )
    newest = NewestStatistics(dimension)
    return ExampleSelector(
        retrieval, build_utility(settings), count, tokens, rng, newest, prefix_index, unseen
    )


def build_utility(settings: Settings) -> UtilityModel:
    """What scores how much examples help; it knows its priors and nothing else."""
    retrieval = settings.retrieval
    if retrieval.utility == "similarity":
        return SimilarityUtility()
    qualities = {llm.name: settings.prior_quality(llm) for llm in settings.llms}
    return LearnedUtility(qualities, retrieval.utility_half_life_h * HOUR_MS)
