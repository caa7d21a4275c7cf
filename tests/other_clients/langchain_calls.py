"""LangChain's calls, run in an environment of its own; prints what came of each, by name, as JSON.

Arguments: the gateway's URL, a request.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from reporting import report

GATEWAY, REQUEST = sys.argv[1:]
WHERE: Any = {"base_url": GATEWAY, "api_key": "none"}
CHAT = ChatOpenAI(
    model="large_llm", max_completion_tokens=200, extra_body={"cache_control": "no-cache"}, **WHERE
)
CONVERSATION = [
    SystemMessage("Be brief."),
    HumanMessage([{"type": "text", "text": "How do I list files?"}]),
    AIMessage("ls"),
    HumanMessage(REQUEST),
]


def answer(message: Any) -> dict[str, Any]:
    return {
        "texts": [message.text],
        "usage": message.usage_metadata,
        "end": message.response_metadata.get("finish_reason"),
    }


def streamed(chunks: Any) -> dict[str, Any]:
    first, *others = chunks
    whole = first
    for chunk in others:
        whole += chunk
    return {**answer(whole), "pieces": len(others) + 1}


async def asynchronous() -> dict[str, Any]:
    async def stream() -> list[Any]:
        return [chunk async for chunk in CHAT.astream(REQUEST)]

    whole, chunks = await asyncio.gather(CHAT.ainvoke(REQUEST), stream())
    return {"texts": [whole.text, streamed(chunks)["texts"][0]]}


def embeddings(**options: Any) -> dict[str, Any]:
    model = OpenAIEmbeddings(model="text_embedding", **options, **WHERE)
    rows = [*model.embed_documents(["find files", "list files"]), model.embed_query("find files")]
    return {"lengths": [len(row) for row in rows]}


report(
    {
        "invoke": lambda: answer(CHAT.invoke(REQUEST)),
        "conversation": lambda: answer(CHAT.invoke(CONVERSATION)),
        "stream": lambda: streamed(CHAT.stream(REQUEST)),
        "stream with usage": lambda: streamed(CHAT.stream(REQUEST, stream_usage=True)),
        "async": lambda: asyncio.run(asynchronous()),
        "batch": lambda: {"texts": [m.text for m in CHAT.batch([REQUEST] * 4)]},
        "options": lambda: answer(
            ChatOpenAI(
                model="echolm",
                temperature=0.5,
                top_p=0.9,
                n=2,
                seed=7,
                stop_sequences=["never in there"],
                presence_penalty=0.1,
                logit_bias={},
                max_tokens=8,
                default_headers={"X-Team": "search"},
                **WHERE,
            ).invoke(REQUEST)
        ),
        "text": lambda: {
            "texts": [OpenAI(model="large_llm", max_tokens=200, **WHERE).invoke(REQUEST)]
        },
        "embeddings": lambda: embeddings(check_embedding_ctx_length=False),
        "too long": lambda: CHAT.invoke("word " * 6_000),
        "structured output": lambda: CHAT.with_structured_output(
            {"title": "file", "type": "object", "properties": {"name": {"type": "string"}}}
        ).invoke(REQUEST),
    }
)
