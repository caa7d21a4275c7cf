"""LiteLLM's calls, run in an environment of its own; prints what came of each, by name, as JSON.

Arguments: the gateway's URL, Triton's HTTP address, a request.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from reporting import report

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # instead of a download

import litellm

GATEWAY, TRITON, REQUEST = sys.argv[1:]
USER: Any = [{"role": "user", "content": REQUEST}]
PARTS: Any = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "How do I list files?"}]},
    {"role": "assistant", "content": "ls"},
    {"role": "user", "content": [{"type": "text", "text": "And the large ones?"}]},
]
FRESH: Any = {"cache_control": "no-cache", "max_tokens": 200}
OPENAI: Any = {"model": "openai/large_llm", "api_base": GATEWAY, "api_key": "none", **FRESH}
VLLM: Any = {**OPENAI, "model": "hosted_vllm/large_llm"}
UNARY: Any = {
    "model": "triton/echolm",
    "api_base": f"http://{TRITON}/v2/models/echolm/generate",
    "llm": "large_llm",
    **FRESH,
}
STREAMED: Any = {**UNARY, "api_base": f"http://{TRITON}/v2/models/echolm_stream/generate"}


def answer(response: Any) -> dict[str, Any]:
    return {
        "texts": [choice.message.content for choice in response.choices],
        "ends": [choice.finish_reason for choice in response.choices],
        "usage": response.usage.model_dump() if getattr(response, "usage", None) else None,
    }


def streamed(chunks: Any) -> dict[str, Any]:
    chunks = list(chunks)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    usages = [c.usage.model_dump() for c in chunks if getattr(c, "usage", None)]
    ends = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    return {"texts": ["".join(pieces)], "pieces": len(pieces), "ends": ends, "usage": usages[-1:]}


async def asynchronous() -> dict[str, Any]:
    async def one() -> Any:
        return await litellm.acompletion(messages=USER, **OPENAI)

    async def stream() -> list[Any]:
        response: Any = await litellm.acompletion(messages=USER, stream=True, **OPENAI)
        return [chunk async for chunk in response]

    whole, chunks = await asyncio.gather(one(), stream())
    return {"texts": [answer(whole)["texts"][0], streamed(chunks)["texts"][0]]}


def embedded(**how: Any) -> dict[str, Any]:
    response = litellm.embedding(input=["find files", "list files"], **how)
    return {"lengths": [len(row["embedding"]) for row in response.data]}


_EMBEDDING: Any = {"api_base": GATEWAY, "api_key": "none"}
report(
    {
        "openai": lambda: answer(litellm.completion(messages=USER, **OPENAI)),
        "openai stream": lambda: streamed(
            litellm.completion(
                messages=USER, stream=True, stream_options={"include_usage": True}, **OPENAI
            )
        ),
        "openai stream without options": lambda: streamed(
            litellm.completion(messages=USER, stream=True, **OPENAI)
        ),
        "openai async": lambda: asyncio.run(asynchronous()),
        "openai options": lambda: answer(
            litellm.completion(
                messages=PARTS,
                n=2,
                temperature=0.5,
                top_p=0.9,
                seed=7,
                stop=["never in there"],
                presence_penalty=0.1,
                user="somebody",
                extra_headers={"X-Team": "search"},
                **{**OPENAI, "max_tokens": None, "max_completion_tokens": 8},
            )
        ),
        "openai text": lambda: {
            "texts": [
                litellm.text_completion(
                    prompt=REQUEST, **{**OPENAI, "model": "text-completion-openai/large_llm"}
                )
                .choices[0]
                .text
            ]
        },
        "openai embeddings": lambda: embedded(model="openai/text_embedding", **_EMBEDDING),
        "vllm": lambda: answer(litellm.completion(messages=USER, **VLLM)),
        "vllm stream": lambda: streamed(litellm.completion(messages=USER, stream=True, **VLLM)),
        "vllm embeddings": lambda: embedded(model="hosted_vllm/text_embedding", **_EMBEDDING),
        "unknown model": lambda: litellm.completion(
            messages=USER, **{**OPENAI, "model": "openai/gpt-4"}
        ),
        "too long": lambda: litellm.completion(
            messages=[{"role": "user", "content": "word " * 6_000}], **OPENAI
        ),
        "triton": lambda: answer(litellm.completion(messages=USER, **UNARY)),
        "triton default": lambda: answer(
            litellm.completion(messages=USER, **{**UNARY, "max_tokens": None})
        ),
        "triton of the stream's model": lambda: answer(
            litellm.completion(messages=USER, **STREAMED)
        ),
        "triton stream": lambda: streamed(
            litellm.completion(messages=USER, stream=True, **STREAMED)
        ),
        "triton refusal": lambda: litellm.completion(
            messages=USER, **{**UNARY, "max_tokens": 100_000}
        ),
    }
)
