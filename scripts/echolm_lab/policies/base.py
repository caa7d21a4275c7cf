"""What a way to answer requests is, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from echolm_lab.tasks import Item

MAX_TOKENS = 224
"""Above the longest answer of the demo workload, so that no policy is cut off."""


@dataclass(frozen=True)
class Asking:
    """What all requests have besides their text.

    Attributes:
        max_tokens: longest answer.
    """

    system_prompt: str = ""
    max_tokens: int = MAX_TOKENS


DEFAULT_ASKING = Asking()


@dataclass(frozen=True)
class Reply:
    """An answer under some policy.

    Attributes:
        llm: who answered; ``cache`` for a stored answer.
        feedback_token: empty where the policy offers none.
        degraded: as EchoLM reports it.
    """

    text: str
    llm: str
    num_examples: int = 0
    feedback_token: str = ""
    solicit_feedback: bool = False
    degraded: str = ""


class AnswerPolicy(Protocol):
    """One way to answer requests."""

    name: str

    async def send(self, item: Item) -> Reply:
        """Answer one request; raises what the client raises."""
        ...
