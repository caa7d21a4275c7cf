"""What can be told of a request and a stored example before any LLM runs.

Stage 2 of the paper's Example Selector (§4.1) needs more than the cosine: look-alikes differ
in a single word, and a corrupted answer has the same request as a good one. All features of a
batch are computed at once (``batch``) from small arrays that are kept per example (``examples``),
since the same examples are found again and again. ``texts`` reads a text.
"""

from echolm.retrieval.features.batch import (
    EXAMPLE_FEATURES,
    PRIOR,
    REQUEST_FEATURES,
    VOTE,
    FeatureBatch,
    featurize,
)
from echolm.retrieval.features.examples import ExampleTexts
from echolm.retrieval.features.texts import words_and_literals

__all__ = [
    "EXAMPLE_FEATURES",
    "PRIOR",
    "REQUEST_FEATURES",
    "VOTE",
    "ExampleTexts",
    "FeatureBatch",
    "featurize",
    "words_and_literals",
]
