"""The peers that can be measured, in the order of the table."""

from __future__ import annotations

from echolm_lab.experiments.peers.base import Peer
from echolm_lab.experiments.peers.direct import Direct
from echolm_lab.experiments.peers.echolm import EchoLM
from echolm_lab.experiments.peers.gptcache import GPTCache
from echolm_lab.experiments.peers.litellm_auto_router import LiteLLMAutoRouter
from echolm_lab.experiments.peers.litellm_cache import LiteLLMCache
from echolm_lab.experiments.peers.litellm_proxy import LiteLLMProxy
from echolm_lab.experiments.peers.litellm_router import LiteLLMRouter
from echolm_lab.experiments.peers.vllm_sr import VLLMSemanticRouter

PEERS: tuple[Peer, ...] = (
    Direct(),
    LiteLLMProxy(),
    LiteLLMRouter(),
    LiteLLMAutoRouter(),
    LiteLLMCache(),
    GPTCache(),
    VLLMSemanticRouter(),
    EchoLM(),
)
