"""The configured judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from echolm.generation.llm import Completion, LLMClient, OnText, Sampling
from echolm.judging.grader import GraderJudge, load_grader
from echolm.judging.judge import Judge
from echolm.judging.llm import LLMJudge, read_prompt
from echolm.judging.similarity import SimilarityJudge, TextEmbedder
from echolm.routing.load import ServingLoad
from echolm.routing.service import Target
from echolm.settings import Settings


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
    settings: Settings, targets: Mapping[str, Target], embedder: TextEmbedder, load: ServingLoad
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
        target = targets[judging.judge_llm or settings.dearest_llm.name]
        return LLMJudge(
            _Counted(target.client, target.settings.name, load),
            target.template,
            target.tokens,
            read_prompt(judging.prompt),
            judging.max_verdict_tokens,
        )
    return None
