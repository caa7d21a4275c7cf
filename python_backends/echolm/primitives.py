"""What travels with a request, each thing defined once, in the order in which a request meets it.

Every object is frozen, so that it may cross threads and module borders.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from echolm.conversation import Turn, transcript
from echolm.errors import InvalidRequestError

AUTO = "auto"
"""The value of ``Request.llm`` that leaves the choice of the LLM to the router."""

STORED = "stored"
"""What an answer from the store has as ``Answer.llm``, where no LLM has run for it."""

DEFAULT_TENANT = "public"
"""The tenant of a request that names none."""

MAX_TENANT_BYTES = 256
_NO_NAME = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, lone surrogates, line ends


@dataclass(frozen=True)
class Piece:
    """A part of an answer that is streamed.

    Attributes:
        tool_calls: deltas as in OpenAI's API: objects with the ``index`` of their call.
        logprobs: objects as in OpenAI's ``logprobs.content``, one a token.
    """

    text: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def joined(cls, pieces: Sequence[Piece]) -> Piece:
        """One piece of several, in order."""
        return cls(
            "".join(piece.text for piece in pieces),
            tuple(call for piece in pieces for call in piece.tool_calls),
            tuple(token for piece in pieces for token in piece.logprobs),
        )


OnPiece = Callable[[Piece], None]
"""Called with each new piece of an answer."""


def decode(value: bytes | str, name: str) -> str:
    """A text that a caller has sent; InvalidRequestError, which names it, if it is not UTF-8."""
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        got = f"byte 0x{value[error.start]:02x} at offset {error.start}"
        raise InvalidRequestError.of(name, "UTF-8 text", got) from error


def check_tenant(tenant: str, name: str = "tenant") -> None:
    """InvalidRequestError if it cannot be a tenant's name; the message calls it ``name``.

    Names in any script will do, and are compared to the byte. Control characters will not: people
    cannot see them, and logs, command lines and databases each do something else with them.
    """
    size = len(tenant.encode("utf-8", "surrogatepass"))
    if not 0 < size <= MAX_TENANT_BYTES:
        expected = f"a name of 1 to {MAX_TENANT_BYTES} bytes"
        raise InvalidRequestError.of(name, expected, f"{size} bytes")
    if found := [c for c in tenant if unicodedata.category(c) in _NO_NAME]:
        expected = "a name without control characters, line breaks and lone surrogates"
        raise InvalidRequestError.of(name, expected, f"U+{ord(found[0]):04X} in it")


MAX_TOP_LOGPROBS = 20
"""Most likely tokens in place of a generated one, as in OpenAI's API."""

GUIDE_TYPES = ("json", "json_schema", "regex", "ebnf_grammar", "structural_tag")
"""What TensorRT-LLM can make an answer match; ``json`` is any JSON text."""


@dataclass(frozen=True)
class Sampling:
    """How to sample one answer.

    Attributes:
        max_tokens: most new tokens, > 0.
        temperature: >= 0; 0 is greedy.
        top_p: in (0, 1]; 1 is off.
        top_k: >= 0; 0 is off.
        seed: 64 bits without a sign, which make the text reproducible; None: a new seed each time.
        stop: strings that end the answer and are not part of it.
        frequency_penalty: subtracted from a token's logit for each time it was generated.
        presence_penalty: subtracted from a token's logit once it was generated.
        repetition_penalty: divides the logit of a token that was there before, in (0, 10]; 1 is
            off.
        min_tokens: fewest new tokens, 0..max_tokens; the end-of-text token does not come before.
        bad_words: strings that the answer must not hold.
        embedding_bias: what is added to the logits of each word's tokens, as (word, weight).
        guide_type: what the answer must match, one of :data:`GUIDE_TYPES`; empty: nothing.
        guide: the schema, expression, grammar or tag of ``guide_type``; empty with ``json``.
        logprobs: whether the log probabilities of the generated tokens are wanted.
        top_logprobs: how many likely tokens in place of each generated one are wanted, with the
            texts and log probabilities of all, 0..:data:`MAX_TOP_LOGPROBS`; None: nothing of that.
        tools: JSON array of the tools that the LLM may call, as in OpenAI's API; empty: none.
        tool_choice: JSON, as in OpenAI's API; empty: the LLM chooses.
        response_format: JSON, as in OpenAI's API, of which ``guide_type`` and ``guide`` are made;
            empty: those are of their own.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    bad_words: tuple[str, ...] = ()
    embedding_bias: tuple[tuple[str, float], ...] = ()
    guide_type: str = ""
    guide: str = ""
    logprobs: bool = False
    top_logprobs: int | None = None
    tools: str = ""
    tool_choice: str = ""
    response_format: str = ""

    @property
    def forces_text(self) -> bool:
        """Whether the answer may be another one than the LLM would give, or cut short."""
        forced = self.stop, self.min_tokens, self.bad_words, self.embedding_bias, self.guide_type
        return any(forced) or bool(self.tools)

    @property
    def wants_more_than_text(self) -> bool:
        """Whether a text, such as a stored one, cannot be the whole answer, or must have a form."""
        wanted = self.logprobs, self.top_logprobs is not None, self.tools, self.guide_type
        return any(wanted)

    @property
    def reproducible(self) -> bool:
        """Whether the same request is to have the same answer again: greedy, or with a seed."""
        return self.temperature == 0.0 or self.seed is not None

    @classmethod
    def checked(
        cls,
        values: Mapping[str, Any],
        names: Mapping[str, str],
        *,
        max_stop_words: int,
        most_tokens: int | None = None,
        max_guide_chars: int = 100_000,
        padded: bool = False,
    ) -> Sampling:
        """The sampling that a caller asks for.

        Args:
            values: by field; None, as a missing one, stands for the field's default.
            names: what the caller calls a field, where that is not the field's name.
            max_stop_words: limit of ``stop``, of ``bad_words`` and of ``embedding_bias``.
            most_tokens: limit of ``max_tokens``; None: no limit.
            padded: whether empty words are padding, which is dropped; else they are refused.

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
            ("repetition_penalty", 0 < asked.repetition_penalty <= 10, "a number in (0, 10]"),
            (
                "min_tokens",
                0 <= asked.min_tokens <= asked.max_tokens,
                f"0 to max_tokens ({asked.max_tokens})",
            ),
            (
                "embedding_bias",
                all(math.isfinite(weight) for _, weight in asked.embedding_bias),
                "finite weights",
            ),
            ("guide_type", asked.guide_type in ("", *GUIDE_TYPES), f"one of {list(GUIDE_TYPES)}"),
            (
                "top_logprobs",
                0 <= (asked.top_logprobs or 0) <= MAX_TOP_LOGPROBS,
                f"0 to {MAX_TOP_LOGPROBS}",
            ),
            (
                "guide",
                bool(asked.guide) is (asked.guide_type not in ("", "json")),
                f"a guide with a guide type other than 'json', and none else; "
                f"the type is {asked.guide_type!r}",
            ),
        )
        for field, usable, expected in checks:
            if not usable:
                name = names.get(field, field)
                raise InvalidRequestError.of(name, expected, getattr(asked, field))
        if len(asked.guide) > max_guide_chars:
            expected = f"at most {max_guide_chars} characters"
            raise InvalidRequestError.of(names.get("guide", "guide"), expected, len(asked.guide))
        lists: dict[str, Any] = {}
        for field in ("stop", "bad_words", "embedding_bias"):
            name, elements = names.get(field, field), getattr(asked, field)
            if len(elements) > max_stop_words:
                raise InvalidRequestError.of(name, f"at most {max_stop_words}", len(elements))
            # An empty stop word would end every answer at once.
            lists[field] = tuple(e for e in elements if (e if isinstance(e, str) else e[0]))
            if len(lists[field]) < len(elements) and not padded:
                raise InvalidRequestError.of(name, "words that are not empty", "an empty one")
        return replace(asked, **lists)


@dataclass(frozen=True)
class Request:
    """One valid request, as :func:`echolm.router.validation.build_request` makes it.

    Attributes:
        text: what was said last, which waits for an answer.
        tenant: whose request it is; examples never cross tenants.
        use_examples: whether stored examples may be put in front of it.
        store: whether the interaction may become an example.
        llm: ``auto`` or the name of a configured LLM.
        stream: whether the text is wanted in pieces.
        history: the turns before ``text``, oldest first, without the system prompt.
        tool_call_id: of a tool's result in ``text``: which call it answers; empty: a user said it.
        cost_weight: quality that one unit of cost is worth to the caller; None: as configured.
    """

    text: str
    sampling: Sampling
    system_prompt: str = ""
    tenant: str = DEFAULT_TENANT
    use_examples: bool = True
    store: bool = True
    llm: str = AUTO
    stream: bool = False
    history: tuple[Turn, ...] = ()
    tool_call_id: str = ""
    cost_weight: float | None = None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The whole conversation, the last turn included."""
        role = "tool" if self.tool_call_id else "user"
        return (*self.history, Turn(role, self.text, tool_call_id=self.tool_call_id))

    @cached_property
    def transcript(self) -> str:
        """The conversation as one text (:func:`echolm.conversation.transcript`), which is what is
        embedded, compared and stored as an example's request."""
        return transcript(self.turns)


@dataclass(frozen=True)
class Candidate:
    """A stored example that was found near a request.

    Attributes:
        request: the transcript of its conversation, see :class:`Request`; so also of those below.
        quality: the response's, 0..1.
        similarity: cosine of the two requests' embeddings.
        answer_keys: see :class:`echolm.store.base.Example`.
        fit: how far nothing tells that its request is of another kind, 0..1; see
            :mod:`echolm.retrieval.lookalikes`.
    """

    id: int
    request: str
    response: str
    tenant: str
    quality: float
    similarity: float
    answer_keys: str = ""
    fit: float = 1.0


@dataclass(frozen=True)
class Selected:
    """An example that is selected for the prompt.

    Attributes:
        similarity: see :class:`Candidate`.
        utility: its estimated usefulness for this request, 0..1.
        agreement: how far the responses of all examples that were found agree with its own, by
            their relevance, from -1 to 1.
    """

    id: int
    request: str
    response: str
    similarity: float
    utility: float
    agreement: float = 0.0


@dataclass(frozen=True)
class Reusable:
    """A stored answer that may be right for a request as it is.

    Attributes:
        id: that of its example.
        exact: whether its request is the same text.
        features: :data:`echolm.retrieval.reuse.REUSE_FEATURES`, FP32 [f].
    """

    id: int
    response: str
    exact: bool
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Retrieved:
    """What retrieval knows of a request.

    Attributes:
        embedding: FP32 [D], unit length; None if there is none.
        examples: the selected examples in the order of the prompt.
        help_probability: see :class:`echolm.retrieval.selector.Selection`, 0..1.
        selection: text of a :class:`~echolm.retrieval.record.SelectionRecord`; empty if there was
            nothing to select from. It travels unread into the feedback token and the event log.
        degraded: why there are no examples, if something failed.
        reusable: the stored answer that is most probably right; None if there is none.
    """

    embedding: NDArray[np.float32] | None = None
    examples: tuple[Selected, ...] = ()
    help_probability: float = 0.0
    selection: str = ""
    degraded: str = ""
    reusable: Reusable | None = None


@dataclass(frozen=True)
class Choice:
    """The choice of an LLM for a request.

    Attributes:
        arm: name of the chosen LLM.
        propensity: the probability with which it was drawn.
        probabilities: the probability of every eligible LLM, by name.
        quality: the bandit's estimate of the answer's quality, clipped to 0..1.
        rating_value: see :func:`echolm.bandit.rating_value.value_of_rating`; minus infinity where
            nothing was drawn.
        statistics: see :class:`Decision`.
        doubt: probability that the LLM which seems best is not, as far as is known, 0..1.
    """

    arm: str
    propensity: float
    probabilities: Mapping[str, float]
    quality: float
    rating_value: float = -math.inf
    statistics: int = 0
    doubt: float = 0.0


@dataclass(frozen=True)
class Completion:
    """What an LLM generated for one prompt.

    Attributes:
        finish_reason: ``stop`` | ``length`` | ``tool_calls`` | ``cancelled``.
        num_input_tokens, num_output_tokens: -1 if the LLM's contract does not give them.
        cumulative_logprob: natural log of the answer's probability; None unless it was asked for.
        token_logprobs: that of each generated token; empty unless they were asked for.
        tool_calls: the calls of tools, objects as in OpenAI's API.
        logprobs: for ``Sampling.top_logprobs``; see :class:`Piece`.
    """

    text: str
    finish_reason: str
    num_input_tokens: int = -1
    num_output_tokens: int = -1
    cumulative_logprob: float | None = None
    token_logprobs: tuple[float, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Answer:
    """What the client gets; the fields are the outputs of the model ``echolm``.

    Attributes:
        llm: name of the LLM that answered.
        example_ids: ids of the examples in its prompt, in order.
        predicted_quality: the quality that the router expects, 0..1.
        solicit_feedback: whether the client is asked to rate the answer.
        feedback_token: names the answer in feedback.
        degraded: what failed on the way; empty if nothing did.
        cumulative_logprob, token_logprobs, tool_calls, logprobs: see :class:`Completion`.
    """

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
    cumulative_logprob: float | None = None
    token_logprobs: tuple[float, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    logprobs: tuple[Mapping[str, Any], ...] = ()


OTHER_FEATURES = -1
"""The value of ``Decision.statistics`` if the context has the elements of an earlier version."""


@dataclass(frozen=True)
class Decision:
    """What a rating of an answer teaches about; feedback tokens and the event log hold it.

    Attributes:
        request_id: unique id of the answer; a rating counts once for it.
        llm: the arm that answered.
        context: the bandit's x, FP32 [d]; it travels as FP16.
        propensity, quality: see :class:`Choice`.
        example_ids: ids of the examples in the prompt, in its order.
        selection: see :class:`Retrieved`.
        revision: the LLM's ``llms.revision``.
        statistics: version of the :class:`~echolm.learning.request_statistics.RequestStatistics`
            by which the context was made.
        solicited: why a rating was asked for: ``random`` or ``value``; empty if none was.
        solicit_probability: the probability with which it was asked for, 0..1.
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
    statistics: int = 0
    solicited: str = ""
    solicit_probability: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What the front door is to do for a request.

    Attributes:
        llm: which LLM is to be called with ``prompt``; ``stored``: none, ``text`` is the answer.
        stream: whether the text is wanted in pieces.
        degraded: what has failed so far.
        example_ids, predicted_quality, solicit_feedback, feedback_token: see :class:`Answer`.
    """

    request_id: str
    llm: str
    prompt: str
    sampling: Sampling
    stream: bool
    example_ids: tuple[int, ...]
    predicted_quality: float
    solicit_feedback: bool
    feedback_token: str
    degraded: str
    text: str = ""


@dataclass(frozen=True)
class Report:
    """What has become of a plan.

    Attributes:
        kind: ``answered``; ``failed``: its LLM has, before the client got any text, and another
            plan is wanted; ``ended``: the client has got no answer.
        llm: the plan's.
        completion: the answer, if there is one.
        selection_s, generation_s, total_s: seconds that the front door has measured: until the plan
            came, of the LLM, and of the whole request.
        first_token_s: from the request to the first piece of a stream; below 0 if there was none.
        refused: whether the LLM that failed calls the request invalid.
        reason: the error of the LLM that failed, or why the request ended: ``cancelled``,
            ``stream_broken``, ``overload``, ``late`` (nobody waited for the plan), ``error``.
    """

    kind: Literal["answered", "failed", "ended"]
    request_id: str
    llm: str
    completion: Completion
    selection_s: float = 0.0
    generation_s: float = 0.0
    first_token_s: float = -1.0
    total_s: float = 0.0
    refused: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Interaction:
    """A finished request and its answer, submitted as a possible example.

    Attributes:
        request: its transcript.
        embedding: the request's, FP32 [D], unit length.
        quality: the quality that the router expects of the answer, 0..1.
        help_probability: probability that stored examples serve the request already, 0..1.
        answer_key: the answer's :func:`echolm.store.base.answer_key`; empty if the answer may not
            be given to the same request again.
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
    answer_key: str = ""


@dataclass(frozen=True)
class Served:
    """An answered request, with all that it takes to learn more about it.

    Attributes:
        x: the bandit's context, FP32 [d].
        choice: the choice of the LLM that answered.
        text: the answer.
        check: the probability with which the strongest LLM was drawn to check a stored answer; 0 if
            it was not.
    """

    request: Request
    retrieved: Retrieved
    x: NDArray[np.float32]
    choice: Choice
    decision: Decision
    text: str
    check: float = 0.0
