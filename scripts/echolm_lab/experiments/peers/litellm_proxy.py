"""LiteLLM's proxy in front of one LLM."""

from __future__ import annotations

import contextlib

from echolm_lab.experiments.peers.base import Bench, Running
from echolm_lab.experiments.peers.litellm import LiteLLM, deployment, proxy


class LiteLLMProxy(LiteLLM):
    """Checks the key and passes the request on."""

    name = "litellm"
    does = "proxies: checks the key, passes the request on"

    def running(self, bench: Bench) -> contextlib.AbstractContextManager[Running]:
        return proxy(self.name, bench, {"model_list": [deployment(bench)]})
