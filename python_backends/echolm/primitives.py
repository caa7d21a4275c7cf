"""What travels with a request, each thing defined once.

Arrays say their shape; every object is frozen, so that it may cross threads and module borders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from echolm.errors import InvalidRequestError

AUTO = "auto"

DEFAULT_TENANT = "public"


@dataclass(frozen=True)
class Sampling:
    """How to sample one answer.

    Attributes:
        max_tokens: most new tokens, > 0.
        temperature: >= 0; 0 is greedy.
        top_p: in (0, 1]; 1 is off.
        top_k: >= 0; 0 is off.
        seed: 64 bits without a sign. The same seed, prompt and parameters give the same text;
            None: a new seed each time.
        stop: strings that end the answer; they are not part of it.
        frequency_penalty: subtracted from a token's logit for each time it was generated.
        presence_penalty: subtracted from a token's logit once it was generated.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0

    @classmethod
    def checked(
        cls,
        values: Mapping[str, Any],
        names: Mapping[str, str],
        *,
        max_stop_words: int,
        most_tokens: int | None = None,
        padded: bool = False,
    ) -> Sampling:
        """The sampling that a caller asks for.

        Args:
            values: by field; None, as a missing one, stands for the field's default.
            names: what the caller calls a field, where that is not the field's name.
            max_stop_words: most elements of ``stop``.
            most_tokens: limit of ``max_tokens``; None: no limit.
            padded: whether empty stop words are padding, which is dropped; else they are refused.

        Raises:
            InvalidRequestError: a value cannot be used; the message names it as the caller does.
        """
        asked = cls(**{field: value for field, value in values.items() if value is not None})
        most = math.inf if most_tokens is None else most_tokens
        token_range = "an integer > 0" if most_tokens is None else f"1 to {most_tokens}"
        checks = (
            ("max_tokens", 0 < asked.max_tokens <= most, token_range),
            ("temperature", 0 <= asked.temperature < math.inf, "a finite number of at least 0"),
            ("top_p", 0 < asked.top_p <= 1, "a number above 0 and at most 1"),
            ("top_k", asked.top_k >= 0, "0 (off) or more"),
            ("seed", asked.seed is None or 0 <= asked.seed < 2**64, "an integer in [0, 2**64)"),
            ("frequency_penalty", -2 <= asked.frequency_penalty <= 2, "a number in [-2, 2]"),
            ("presence_penalty", -2 <= asked.presence_penalty <= 2, "a number in [-2, 2]"),
        )
        for field, usable, expected in checks:
            if not usable:
                raise InvalidRequestError.of(
                    names.get(field, field), expected, getattr(asked, field)
                )
        stop = names.get("stop", "stop")
        if len(asked.stop) > max_stop_words:
            raise InvalidRequestError.of(stop, f"at most {max_stop_words}", len(asked.stop))
        # An empty stop word would end every answer at once.
        words = tuple(word for word in asked.stop if word)
        if len(words) < len(asked.stop) and not padded:
            raise InvalidRequestError.of(stop, "stop words that are not empty", "an empty one")
        return replace(asked, stop=words)


@dataclass(frozen=True)
class Request:
    """One valid request.

    Attributes:
        use_examples: whether stored examples may be put in front of it.
        store: whether the interaction may become an example.
        llm: ``auto`` or the name of a configured LLM.
        stream: whether pieces are wanted as they come.
    """

    text: str
    sampling: Sampling
    system_prompt: str = ""
    tenant: str = DEFAULT_TENANT
    use_examples: bool = True
    store: bool = True
    llm: str = AUTO
    stream: bool = False


@dataclass(frozen=True)
class Candidate:
    """A stored example found near a request.

    Attributes:
        similarity: cosine of the two requests' embeddings.
    """

    id: int
    request: str
    response: str
    tenant: str
    quality: float
    similarity: float


class Selected(NamedTuple):
    """One example that goes into the prompt.

    Attributes:
        utility: its estimated usefulness for this request, 0..1.
    """

    id: int
    request: str
    response: str
    similarity: float
    utility: float


@dataclass(frozen=True)
class Retrieved:
    """What is known of a request's past.

    Attributes:
        embedding: FP32 [D], unit length; None if there is none.
        examples: chosen, in prompt order.
        help_probability: how surely stored examples serve the request; see ``Selection``.
        selection: how they were chosen, text of a ``SelectionRecord``; empty if unknown.
        degraded: why there are none, if something failed.
    """

    embedding: NDArray[np.float32] | None = None
    examples: tuple[Selected, ...] = ()
    help_probability: float = 0.0
    selection: str = ""
    degraded: str = ""


@dataclass(frozen=True)
class Choice:
    """A routing decision.

    Attributes:
        arm: the LLM that was drawn.
        propensity: the probability with which it was drawn.
        probabilities: the same for every eligible arm.
        quality: the model's estimate for the drawn arm, clipped to 0..1.
        rating_value: what a rating of the answer is worth, see ``solicitation``.
    """

    arm: str
    propensity: float
    probabilities: Mapping[str, float]
    quality: float
    rating_value: float = 0.0


@dataclass(frozen=True)
class Decision:
    """What a rating teaches about: one answered request.

    Attributes:
        request_id: unique id of the answer; a rating counts once for it.
        llm: the arm that answered.
        context: the bandit's x, FP32 [d]; travels as FP16.
        propensity: probability with which the arm was drawn.
        quality: what the router predicted.
        example_ids: examples in the prompt.
        selection: how they were chosen, text of a ``SelectionRecord``; empty if there were none.
        revision: of the LLM (``llms.revision``).
    """

    request_id: str
    tenant: str
    llm: str
    context: NDArray[np.float32]
    propensity: float
    quality: float
    example_ids: tuple[int, ...]
    selection: str = ""
    revision: str = ""


@dataclass(frozen=True)
class Completion:
    """One finished answer.

    Attributes:
        finish_reason: ``stop`` | ``length`` | ``cancelled``.
        num_input_tokens: prompt length, or -1 where the LLM's contract does not tell it.
        num_output_tokens: likewise.
    """

    text: str
    finish_reason: str
    num_input_tokens: int = -1
    num_output_tokens: int = -1


OnText = Callable[[str], None]


@dataclass(frozen=True)
class Interaction:
    """A finished request and answer, offered as an example.

    Attributes:
        help_probability: how surely stored examples serve the request already; see
            :class:`~echolm.retrieval.selector.Selection`.
    """

    request: str
    response: str
    embedding: NDArray[np.float32]
    tenant: str
    system_prompt: str
    llm: str
    finish_reason: str
    quality: float
    help_probability: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What the client gets; fields as the outputs of ``echolm``."""

    text: str
    llm: str
    example_ids: tuple[int, ...]
    predicted_quality: float
    solicit_feedback: bool
    feedback_token: str
    degraded: str
    finish_reason: str
    num_input_tokens: int
    num_output_tokens: int


@dataclass(frozen=True)
class Served:
    """An answered request, with all that learning more about it takes.

    Attributes:
        x: the bandit's context.
        choice: of the LLM that answered.
        decision: what a rating of the answer teaches about.
        solicited: whether a rating is asked for.
    """

    request: Request
    retrieved: Retrieved
    x: NDArray[np.float32]
    choice: Choice
    decision: Decision
    text: str
    solicited: bool
