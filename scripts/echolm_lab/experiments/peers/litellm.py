"""LiteLLM's proxy in any of its configurations; each is a peer in a file of its own."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from echolm.serving.preflight import free_ports

from echolm_lab.experiments.peers import embedding_server, llm_server
from echolm_lab.experiments.peers.base import Bench, Running
from echolm_lab.experiments.peers.clients import chat
from echolm_lab.experiments.peers.environments import installed, python_of
from echolm_lab.experiments.peers.processes import ProcessTree, answers, server

ENVIRONMENT = "litellm"
VERSION = "1.105.7"
LICENCE = "MIT, with litellm-enterprise (proprietary, development and tests only)"


def deployment(bench: Bench, number: int = 1, name: str = llm_server.MODEL) -> dict[str, Any]:
    """An entry of ``model_list``: the dummy LLM, as one of several that are told apart."""
    parameters = {
        "model": f"openai/{llm_server.MODEL}-{number}",
        "api_base": bench.llm_url,
        "api_key": "none",
    }
    return {"model_name": name, "litellm_params": parameters}


def embedder(bench: Bench) -> dict[str, Any]:
    """An entry of ``model_list``: the embedder."""
    parameters = {
        "model": f"openai/{embedding_server.MODEL}",
        "api_base": bench.embedding_url,
        "api_key": "none",
    }
    return {"model_name": embedding_server.MODEL, "litellm_params": parameters}


@contextlib.contextmanager
def proxy(
    name: str,
    bench: Bench,
    configuration: Mapping[str, Any],
    parts: Mapping[str, ProcessTree] | None = None,
) -> Iterator[Running]:
    """The proxy with a configuration, as long as the context lasts.

    Args:
        parts: what runs beside the proxy and counts as well.
    """
    [port] = free_ports("127.0.0.1", 1)
    file = bench.work / f"{name}.yaml"
    file.write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
    key = f"sk-{secrets.token_hex(32)}"
    program = [str(python_of(bench, ENVIRONMENT).with_name("litellm")), "--config", str(file)]
    program += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", str(bench.workers)]
    environment = {
        "LITELLM_MASTER_KEY": key,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
    }
    up = server(
        name,
        program,
        bench.work,
        ready=lambda: answers(port, "/health/liveliness"),
        environment=environment,
    )
    with up as tree:
        yield Running({name: chat(port, key)}, {"proxy": tree, **(parts or {})})


class LiteLLM:
    """What the configurations share."""

    version = VERSION
    licence = LICENCE

    def install(self, bench: Bench) -> None:
        installed(bench, ENVIRONMENT)
