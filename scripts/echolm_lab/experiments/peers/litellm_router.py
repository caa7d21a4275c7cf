"""LiteLLM's proxy with its router between two deployments."""

from __future__ import annotations

import contextlib

from echolm_lab.experiments.peers.base import Bench, Running
from echolm_lab.experiments.peers.litellm import LiteLLM, deployment, proxy


class LiteLLMRouter(LiteLLM):
    """Sends the request to the deployment with the fewest in flight."""

    name = "litellm-router"
    does = "proxies and routes by load: least busy of two deployments; reads nothing of the request"

    def running(self, bench: Bench) -> contextlib.AbstractContextManager[Running]:
        configuration = {
            "model_list": [deployment(bench, 1), deployment(bench, 2)],
            "router_settings": {"routing_strategy": "least-busy"},
        }
        return proxy(self.name, bench, configuration)
