"""The configured LLMs, and the judge of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from echolm.errors import ConfigurationError
from echolm.internal_calls import CallProofs
from echolm.judges.base import Judge
from echolm.judges.grader import GraderJudge, load_grader
from echolm.judges.llm import LLMJudge, read_prompt
from echolm.judges.similarity import SimilarityJudge, TextEmbedder
from echolm.llm.chat_template import ChatTemplate, load_chat_template
from echolm.llm.endpoint import LLMClient, LLMEndpoint, ServedLLM
from echolm.llm.openai_messages import OpenAIMessages
from echolm.llm.tokens import token_counter
from echolm.load.tracker import ServingLoad
from echolm.primitives import Completion, OnPiece, Sampling
from echolm.settings import LLMSettings, Settings

if TYPE_CHECKING:
    from echolm.llm.triton_client import Channels, TritonLLMClient


def build_llm_clients(settings: Settings) -> dict[str, ServedLLM]:
    """A client for each configured LLM, by its name.

    ConfigurationError if a key or a certificate cannot be used.
    """
    from echolm.llm.triton_client import Channels

    without_tls = Channels()
    return {llm.name: _client(llm, settings, without_tls) for llm in settings.llms}


def _client(llm: LLMSettings, settings: Settings, without_tls: Channels) -> ServedLLM:
    if llm.contract == "openai":
        from echolm.llm.openai_client import OpenAIClient

        return OpenAIClient(llm, settings.limits.request_timeout_s)
    from echolm.llm.contracts import CONTRACTS
    from echolm.llm.credentials import api_key, channel_credentials
    from echolm.llm.triton_client import Channels

    credentials = channel_credentials(llm)
    channels = without_tls if credentials is None else Channels(credentials)
    url = llm.grpc_address or settings.grpc_url
    interval_ms, bos = settings.limits.stream_interval_ms, build_chat_template(llm).added_bos
    key = settings.feedback.signing_key.get_secret_value()
    proofs = CallProofs(key) if key else None
    admin_key = api_key(llm) if llm.url else settings.triton.admin_key.get_secret_value()
    return CONTRACTS[llm.contract](channels, url, llm.model, interval_ms, bos, proofs, admin_key)


def build_callees(
    settings: Settings, clients: Mapping[str, ServedLLM]
) -> dict[str, TritonLLMClient]:
    """What says how the front door calls each LLM, by its name.

    Args:
        clients: see :func:`build_llm_clients`; those of LLMs elsewhere are replaced.
    """
    from echolm.llm.llmapi import RemoteLLM
    from echolm.llm.triton_client import Channels, TritonLLMClient

    here = Channels()
    local = {name: one for name, one in clients.items() if isinstance(one, TritonLLMClient)}
    remote = [llm.name for llm in settings.llms if llm.url]
    url, key = settings.grpc_url, settings.triton.admin_key.get_secret_value()
    return {**local, **{name: RemoteLLM(here, url, name, key) for name in remote}}


def build_endpoints(
    settings: Settings, clients: Mapping[str, LLMClient] | None = None
) -> dict[str, LLMEndpoint]:
    """The endpoint of each configured LLM, by its name; clients by default as built above."""
    clients = build_llm_clients(settings) if clients is None else clients
    return {
        llm.name: LLMEndpoint(
            llm,
            clients[llm.name],
            OpenAIMessages() if llm.takes_messages else build_chat_template(llm),
            token_counter(llm.tokenizer),
            settings.examples.format,
        )
        for llm in settings.llms
    }


def build_chat_template(llm: LLMSettings) -> ChatTemplate:
    """An LLM's chat template; ConfigurationError if there is none that suits its tokenizer."""
    try:
        return load_chat_template(llm.chat_template, llm.tokenizer, llm.chat_template_args)
    except ConfigurationError as error:
        raise ConfigurationError(f"LLM {llm.name}: {error}") from error


@dataclass(frozen=True)
class _CountedClient:
    """An LLM whose generations count as load."""

    client: LLMClient
    name: str
    load: ServingLoad

    async def generate(
        self, request_id: str, prompt: str, sampling: Sampling, on_piece: OnPiece | None
    ) -> Completion:
        with self.load.serving(self.name):
            return await self.client.generate(request_id, prompt, sampling, on_piece)

    def lacks(self, sampling: Sampling) -> Sequence[str]:
        return self.client.lacks(sampling)


def build_judge(
    settings: Settings,
    endpoints: Mapping[str, LLMEndpoint],
    embedder: TextEmbedder,
    load: ServingLoad,
) -> Judge | None:
    """The judge of ``judging.kind``, whose LLM counts as load; None if there is none.

    ConfigurationError if the grader or the prompt cannot be used.
    """
    judging = settings.judging
    if settings.no_judge:
        return None
    if judging.kind == "similarity":
        return SimilarityJudge(embedder, judging.similarity_floor)
    if judging.kind == "grader":
        return GraderJudge(load_grader(judging.grader))
    llm = endpoints[settings.judge_llm.name]
    return LLMJudge(
        _CountedClient(llm.client, llm.settings.name, load),
        llm.template,
        llm.tokens,
        read_prompt(judging.prompt),
        judging.max_judgement_tokens,
    )
