"""GPTCache as its own server, in front of the LLM."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator

from echolm.serving.preflight import free_ports

from echolm_lab.experiments.peers import embedding_server
from echolm_lab.experiments.peers.base import Bench, Running
from echolm_lab.experiments.peers.clients import chat
from echolm_lab.experiments.peers.environments import installed, python_of
from echolm_lab.experiments.peers.litellm_cache import SIMILARITY
from echolm_lab.experiments.peers.processes import answers, server

_ENVIRONMENT = "gptcache"
_THRESHOLD = 1 - (1 - SIMILARITY) / 2
"""The cosine as GPTCache counts: 1 less a quarter of the squared distance of unit vectors."""


class GPTCache:
    """``gptcache_server`` with its OpenAI proxy, SQLite and faiss."""

    name = "gptcache"
    version = "0.1.44"
    licence = "MIT"
    does = (
        "embeds, looks up in faiss and SQLite, proxies what it does not find and stores the "
        "answer; its server takes one request at a time"
    )

    def install(self, bench: Bench) -> None:
        installed(bench, _ENVIRONMENT)

    @contextlib.contextmanager
    def running(self, bench: Bench) -> Iterator[Running]:
        work = bench.work / "gptcache"
        work.mkdir()
        [port] = free_ports("127.0.0.1", 1)
        configuration = {
            "embedding": "openai",
            "embedding_config": {"model": embedding_server.MODEL, "api_key": "none"},
            "storage_config": {"manager": "sqlite,faiss", "data_dir": str(work / "data")},
            "evaluation": "distance",
            "pre_function": "last_content",
            "post_function": "first",
            # Counting tokens would download a vocabulary.
            "config": {"similarity_threshold": _THRESHOLD, "enable_token_counter": False},
        }
        file = work / "cache.yaml"
        file.write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
        binaries = python_of(bench, _ENVIRONMENT).parent
        program = [str(binaries / "gptcache_server"), "-s", "127.0.0.1", "-p", str(port)]
        program += ["-f", str(file), "-o", "True", "-of", str(file)]
        environment = {
            "OPENAI_API_KEY": "none",
            # Embeddings go there; where completions go, each request says.
            "OPENAI_API_BASE": bench.embedding_url,
            "PATH": os.pathsep.join((str(binaries), os.environ["PATH"])),
        }
        up = server(
            self.name, program, work, ready=lambda: answers(port, "/"), environment=environment
        )
        with up as tree:
            parts = {"server": tree, "embedder": bench.embedding}
            yield Running({self.name: chat(port, api_base=bench.llm_url)}, parts)
