"""Client of EchoLM: synchronous and asyncio, over gRPC or HTTP.

::

    from echolm_client import Client

    with Client("localhost:8001") as client:
        answer = client.generate("How do I list hidden files?")
        print(answer.text, answer.llm)
        client.rate(answer, 1.0)
"""

from echolm_client._aio import AsyncAnswerStream, AsyncClient
from echolm_client._client import AnswerStream, Client
from echolm_client._config import CLIENT_TIMEOUT, DEFAULT_TIMEOUT_S, DEFAULT_URL, TLS
from echolm_client._errors import (
    Cancelled,
    EchoLMError,
    InvalidRequest,
    ServerError,
    Timeout,
    Unavailable,
)
from echolm_client._transport import (
    AsyncFakeTransport,
    AsyncTransport,
    FakeTransport,
    Transport,
)
from echolm_client._types import Answer, GenerateOptions, Message, Sample, Stats

__all__ = [
    "CLIENT_TIMEOUT",
    "DEFAULT_TIMEOUT_S",
    "DEFAULT_URL",
    "TLS",
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "AsyncFakeTransport",
    "AsyncTransport",
    "Cancelled",
    "Client",
    "EchoLMError",
    "FakeTransport",
    "GenerateOptions",
    "InvalidRequest",
    "Message",
    "Sample",
    "ServerError",
    "Stats",
    "Timeout",
    "Transport",
    "Unavailable",
]
