"""What a judge is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from echolm.llm.tokens import TokenCounter
from echolm.primitives import Completion

Scale = Literal["absolute", "agreement", "preference"]
"""What a judge's score means.

- ``absolute``: the quality of the answer, whatever the reference is like.
- ``agreement``: how far the answer agrees with the reference; the reference itself has 1.
- ``preference``: the share that the answer wins against the reference; 0.5 is a tie.
"""


@dataclass(frozen=True)
class Judgement:
    """How a judge rates one answer.

    Attributes:
        score: 0..1 on the judge's scale; None if the judge could not decide.
        tokens: tokens that an LLM read and wrote for it.
        consistent: whether the judge said the same when it saw the two answers in the other order;
            None if it was not asked twice.
    """

    score: float | None
    tokens: int = 0
    seconds: float = 0.0
    consistent: bool | None = None


class Judge(Protocol):
    """Rates answers. Safe for concurrent use from one event loop."""

    @property
    def kind(self) -> str:
        """Name in the configuration, the metrics and the learning log."""

    @property
    def scale(self) -> Scale:
        """What its scores mean."""

    async def judge(self, request: str, answer: str, reference: str | None) -> Judgement:
        """Judge one answer.

        Args:
            reference: another answer to compare it with, by the reference LLM. Only judges of
                the ``absolute`` scale do without.

        Raises:
            EchoError: a part that the judge needs does not work.
            Exception: the judge is defective; there is no judgement.
        """


def spent_tokens(counter: TokenCounter, prompt: str, completion: Completion) -> int:
    """Tokens that an LLM read and wrote; they are counted here where it does not give them."""
    read, written = completion.num_input_tokens, completion.num_output_tokens
    return (read if read >= 0 else counter.count(prompt)) + (
        written if written >= 0 else counter.count(completion.text)
    )
