"""The vLLM semantic router, which cannot be measured without containers."""

from __future__ import annotations

import contextlib

from echolm_lab.experiments.peers.base import Bench, Running
from echolm_lab.experiments.peers.errors import PeerUnavailableError


class VLLMSemanticRouter:
    """Named so that the table says why it is missing."""

    name = "vllm-sr"
    version = "0.4.0"
    licence = "Apache-2.0"
    does = "classifies the request, looks up in a semantic cache, routes"
    _reason = (
        "vllm-sr: its package holds only a command that starts container images (router, Envoy) "
        "with Docker or Podman, and the router's classifiers come from Hugging Face's hub; there "
        "is nothing to run without both"
    )

    def install(self, bench: Bench) -> None:
        raise PeerUnavailableError(self._reason)

    def running(self, bench: Bench) -> contextlib.AbstractContextManager[Running]:
        raise PeerUnavailableError(self._reason)
