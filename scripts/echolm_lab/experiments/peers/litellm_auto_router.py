"""LiteLLM's proxy with its semantic auto router between two LLMs."""

from __future__ import annotations

import contextlib
import json

from echolm_lab.experiments.peers import embedding_server, llm_server
from echolm_lab.experiments.peers.base import Bench, Running
from echolm_lab.experiments.peers.litellm import LiteLLM, deployment, embedder, proxy
from echolm_lab.tasks import Workload

_ROUTES = ("route-a", "route-b")
_UTTERANCES = 16
_THRESHOLD = 0.3


class LiteLLMAutoRouter(LiteLLM):
    """Embeds the request and sends it to the LLM with the most similar utterances."""

    name = "litellm-auto-router"
    does = (
        "embeds, compares with 32 utterances of two routes, proxies to the nearer one (semantic "
        "auto router, which LiteLLM's documentation calls deprecated)"
    )

    def running(self, bench: Bench) -> contextlib.AbstractContextManager[Running]:
        items = Workload(seed=0).stream(len(_ROUTES) * _UTTERANCES, seed=7, phase="past")
        routes = [
            {
                "name": route,
                "description": route,
                "utterances": [item.text for item in items[number :: len(_ROUTES)]],
                "score_threshold": _THRESHOLD,
            }
            for number, route in enumerate(_ROUTES)
        ]
        auto = {
            "model": "auto_router/auto",
            "auto_router_config": json.dumps({"routes": routes}),
            "auto_router_default_model": _ROUTES[0],
            "auto_router_embedding_model": embedding_server.MODEL,
        }
        configuration = {
            "model_list": [
                *(deployment(bench, number, name) for number, name in enumerate(_ROUTES)),
                embedder(bench),
                {"model_name": llm_server.MODEL, "litellm_params": auto},
            ]
        }
        return proxy(self.name, bench, configuration, {"embedder": bench.embedding})
