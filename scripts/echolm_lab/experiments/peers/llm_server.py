"""The dummy LLM that all peers call: an OpenAI-compatible server with one fixed answer.

Run as ``python -m echolm_lab.experiments.peers.llm_server PORT``. ``/calls`` says how many
completions were asked for so far, so that what a cache answered by itself can be counted.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping
from typing import Any

from echolm_lab.experiments.peers.http_server import Handler, serve

ANSWER = "The dummy LLM answers every request with this sentence of a dozen words."
MODEL = "dummy"


def completion(text: str = ANSWER) -> dict[str, Any]:
    """A chat completion as OpenAI's API gives it."""
    return {
        "id": "chatcmpl-dummy",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 14, "total_tokens": 34},
    }


def handlers() -> Mapping[str, Handler]:
    """What the server answers, by path."""
    answer = json.dumps(completion()).encode()
    models = {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "echolm"}]}
    listed = json.dumps(models).encode()
    asked = itertools.count()
    calls = 0

    async def complete(body: Any) -> bytes:
        nonlocal calls
        calls = next(asked) + 1
        return answer

    async def list_models(body: Any) -> bytes:
        return listed

    async def count(body: Any) -> bytes:
        return json.dumps({"calls": calls}).encode()

    return {"/v1/chat/completions": complete, "/v1/models": list_models, "/calls": count}


if __name__ == "__main__":
    serve(int(sys.argv[1]), handlers())
