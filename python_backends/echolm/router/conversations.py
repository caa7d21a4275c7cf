"""Which LLM has a conversation in its prefix cache, and what that is worth to the next request.

An LLM that answered a conversation so far need not read it anew, so a conversation moves to another
one only for a gain that outweighs what is left behind. What is known here is this process's: the
routers of other processes and servers know the conversations that they have answered themselves.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from echolm.conversation import Turn, transcript
from echolm.llm.tokens import EstimatedTokens
from echolm.primitives import STORED, Request

_WARM_S = 600.0
"""Seconds after an answer in which an LLM probably still has the prompt in its prefix cache."""
_KEPT = 65_536  # answers, each in some 200 bytes


class _Warm(NamedTuple):
    llm: str
    since: float


@dataclass
class WarmConversations:
    """Remembers which LLM gave each answer by the conversation that it ended. For one event loop.

    Attributes:
        price: quality that 1,000 tokens are worth which need not be read anew; 0 turns all off.
        clock: in seconds.
    """

    price: float
    clock: Callable[[], float] = time.monotonic
    _known: OrderedDict[bytes, _Warm] = field(default_factory=OrderedDict, init=False)

    def answered(self, request: Request, llm: str, text: str) -> None:
        """Take note of an answer."""
        if not self.price or llm == STORED:  # nothing has read that conversation
            return
        # A call of a tool reaches the next request in another form than the LLM gave it.
        for said in {text.strip(), ""}:
            key = _key(request, request.turns, said)
            self._known[key] = _Warm(llm, self.clock())
            self._known.move_to_end(key)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)

    def llm_of(self, request: Request) -> str:
        """The LLM that has answered the conversation so far; empty if none is known to."""
        before = list(request.history)
        while before and before[-1].role == "tool":  # several results of one answer's calls
            before.pop()
        if not self.price or not before or before[-1].role != "assistant":
            return ""
        answer = before.pop()
        said = "" if answer.tool_calls else answer.text.strip()
        warm = self._known.get(_key(request, before, said))
        return warm.llm if warm is not None and self.clock() - warm.since < _WARM_S else ""

    def bonuses(
        self, requests: Sequence[Request], arms: Sequence[str]
    ) -> NDArray[np.float64] | None:
        """What a warm prefix adds to each arm's score for each request, FP64 [n, arms]; None:
        nothing does."""
        found = [(row, self.llm_of(request)) for row, request in enumerate(requests)]
        warm = [(row, llm) for row, llm in found if llm in arms]
        if not warm:
            return None
        bonuses = np.zeros((len(requests), len(arms)))
        for row, llm in warm:
            bonuses[row, arms.index(llm)] = self.price * _prefix_tokens(requests[row]) / 1_000.0
        return bonuses


def _prefix_tokens(request: Request) -> int:
    """About how many tokens an LLM need not read anew that has answered the conversation so far."""
    characters = len(request.system_prompt) + sum(
        len(turn.text) + len(turn.tool_calls) for turn in request.history
    )
    return int(characters / EstimatedTokens.bytes_per_token)


def _key(request: Request, turns: Sequence[Turn], answer: str) -> bytes:
    """Of a caller's conversation that ends with an answer; an empty one stands for any."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (request.tenant, request.system_prompt, transcript(turns), answer):
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()
