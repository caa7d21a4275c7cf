"""The synchronous client."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from types import TracebackType

from typing_extensions import Unpack

from echolm_client import _protocol as protocol
from echolm_client._base import BaseClient, BaseStream
from echolm_client._config import CLIENT_TIMEOUT, READY_TIMEOUT_S, ClientTimeout, Endpoint
from echolm_client._errors import Timeout, Unavailable
from echolm_client._metrics import parse_stats
from echolm_client._transport import Transport, open_transport
from echolm_client._types import Answer, GenerateOptions, Message, Stats


class AnswerStream(BaseStream[Generator[protocol.Outputs, None, None]], Iterator[str]):
    """An answer that arrives in pieces; iterating gives them as text.

    The request is sent when the first piece is asked for. Use it as a context manager, so
    that leaving early cancels the request on the server at once::

        with client.stream("Tell me a story") as stream:
            for piece in stream:
                print(piece, end="", flush=True)
        print(stream.answer.llm)
    """

    def __next__(self) -> str:
        if self._over:
            raise StopIteration
        self._start()
        try:
            for outputs in self._responses:
                if piece := self._assembly.add(outputs):
                    return piece
            self._finish()
        except BaseException:
            self._over = True
            raise
        raise StopIteration

    def close(self) -> None:
        """Cancel the request unless it is complete; no piece comes after that."""
        self._over = True
        self._responses.close()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Client(BaseClient[Transport]):
    """Talks to an EchoLM server; safe to share between threads.

    Args:
        url: ``[scheme://]host[:port]``; the scheme is ``grpc`` (the default), ``grpcs``,
            ``http`` or ``https``. Nothing is sent before the first call.
        timeout: the seconds that each call may take, from sending the request to the end of its
            response; of a stream to its last piece, however long the caller takes between two
            of them. None sets no limit. A call's own ``timeout`` means the same, for that call.
        metrics_url: the server's metrics page; None: port 8002 of the same host.
        tls: certificates for ``grpcs`` and ``https``.
        headers: sent with every request, for instance for a gateway's authorization.
        transport: replaces the network, for tests.

    Raises:
        ValueError: an address is none, or the timeout is not above 0.

    Example::

        with Client("localhost:8001") as client:
            answer = client.generate("How do I list hidden files?", max_tokens=64)
            print(answer.text)
            client.rate(answer, 1.0)

    Calls raise the errors of :mod:`echolm_client._errors`. Nothing is retried. Cancelling
    works over gRPC and for streams over HTTP; Triton finishes a unary HTTP request even when
    its client has gone.
    """

    @staticmethod
    def _open(endpoint: Endpoint) -> Transport:
        return open_transport(endpoint)

    def generate(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | ClientTimeout | None = CLIENT_TIMEOUT,
        **options: Unpack[GenerateOptions],
    ) -> Answer:
        """Get an answer.

        Args:
            text: the request; not empty.
            messages: in place of a text a conversation, whose last message waits for the answer.
            timeout: for this call, in place of the client's.
            options: see :class:`GenerateOptions`.
        """
        call = protocol.generate_call(text, options, messages=messages)
        started_s = time.perf_counter()
        assembly = protocol.Assembly()
        assembly.add(self._infer(call, timeout))
        return assembly.answer(time.perf_counter() - started_s)

    def stream(
        self,
        text: str | None = None,
        *,
        messages: Sequence[Message] | None = None,
        timeout: float | ClientTimeout | None = CLIENT_TIMEOUT,
        **options: Unpack[GenerateOptions],
    ) -> AnswerStream:
        """Get an answer in pieces. Arguments as for :meth:`generate`."""
        call = protocol.generate_call(text, options, messages=messages, stream=True)
        return AnswerStream(self._transport.stream(call, self._limit(timeout)))

    def rate(
        self,
        rated: str | Answer,
        score: float,
        *,
        tenant: str | None = None,
        timeout: float | ClientTimeout | None = CLIENT_TIMEOUT,
    ) -> bool:
        """Rate an answer; a later rating replaces an earlier one.

        Args:
            rated: the answer, or its feedback token.
            score: from 0 (useless) to 1 (perfect).
            tenant: if given, a token of another tenant's answer is refused. Name it where
                tokens come from people whom you do not trust.

        Returns:
            Whether the rating counts.
        """
        call = protocol.rating_call(rated, score, tenant)
        return protocol.accepted(self._infer(call, timeout))

    def prefer(
        self,
        better: str | Answer,
        over: str | Answer,
        *,
        tenant: str | None = None,
        timeout: float | ClientTimeout | None = CLIENT_TIMEOUT,
    ) -> bool:
        """Say which of two answers of one tenant, or their feedback tokens, is better."""
        call = protocol.preference_call(better, over, tenant)
        return protocol.accepted(self._infer(call, timeout))

    def stats(self, *, timeout: float | ClientTimeout | None = CLIENT_TIMEOUT) -> Stats:
        """Read the server's counters from its metrics page."""
        return parse_stats(self._transport.fetch(self._metrics_url, self._limit(timeout)))

    def is_ready(self, *, timeout: float | ClientTimeout | None = READY_TIMEOUT_S) -> bool:
        """Whether the server can be reached and serves EchoLM."""
        limit = self._limit(timeout)
        try:
            return self._transport.is_ready(protocol.ECHOLM, limit)
        except (Unavailable, Timeout):
            return False

    def close(self) -> None:
        """Close the connections; requests in flight are cancelled. May be called again."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _infer(
        self, call: protocol.Call, timeout: float | ClientTimeout | None
    ) -> protocol.Outputs:
        return self._transport.infer(call, self._limit(timeout))
