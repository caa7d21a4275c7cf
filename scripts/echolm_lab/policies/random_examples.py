"""The small LLM with examples drawn at random."""

from __future__ import annotations

import random
import uuid
from collections.abc import Sequence

from echolm.conversation import Turn
from echolm.llm.chat_template import ChatTemplate, few_shot
from echolm.llm.endpoint import LLMClient
from echolm.primitives import Sampling

from echolm_lab.policies.base import MAX_TOKENS, Reply
from echolm_lab.tasks import Item


class RandomExamples:
    """The small LLM with past interactions drawn at random: what examples bring without a choice.

    The prompt goes straight to the LLM, which spares this policy the search.

    Args:
        llm: the small LLM's client.
        template: of its prompts.
        interactions: (request, response) pairs to draw from.
        count: examples in a prompt.
    """

    name = "random_examples"

    def __init__(
        self,
        llm: LLMClient,
        template: ChatTemplate,
        interactions: Sequence[tuple[str, str]],
        count: int,
        seed: int,
    ) -> None:
        self._llm = llm
        self._template = template
        self._interactions = interactions
        self._count = min(count, len(interactions))
        self._rng = random.Random(seed)

    async def send(self, item: Item) -> Reply:
        drawn = self._rng.sample(self._interactions, self._count)
        completion = await self._llm.generate(
            uuid.uuid4().hex,
            self._template.render(few_shot([Turn("user", item.text)], drawn)),
            Sampling(max_tokens=MAX_TOKENS),
            None,
        )
        return Reply(completion.text, "small_llm", len(drawn))
