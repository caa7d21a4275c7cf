"""What every format of a log comes down to, and why a record of it cannot be learnt from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from echolm.examples.deduplication import plain

NOT_JSON, NOT_UTF8, TOO_LONG, UNKNOWN = (
    "not JSON",
    "not UTF-8",
    "longer than 32 MiB",
    "unknown form",
)
BROKEN = frozenset({NOT_JSON, NOT_UTF8, TOO_LONG, UNKNOWN, "broken row"})
"""Reasons that say that the log is damaged or of another format; others say what was logged."""


class Skipped(Exception):  # noqa: N818 - no error: most logs hold more than can be learnt from
    """A record is not learnt from.

    Attributes:
        reason: a few words, by which such records are counted.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Logged:
    """A request of one turn that was answered completely.

    Attributes:
        models: names by which the log knows what answered, none if it does not say.
        llm: the configured LLM that it counts as.
        sampling: fields of :class:`~echolm.primitives.Sampling` that the request had.
    """

    request: str
    response: str
    system_prompt: str = ""
    models: tuple[str, ...] = ()
    tenant: str = ""
    llm: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def request_hash(self) -> int:
        """63 bits, the same for requests that are the same in one scope."""
        return int(_digest(self.tenant, self.system_prompt, plain(self.request)), 16) >> 1

    @property
    def id(self) -> str:
        """16 hexadecimal digits for the request in its scope and the answer to it."""
        return _digest(self.tenant, self.system_prompt, plain(self.request), self.response)


def _digest(*parts: str) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


class Format(Protocol):
    """One format of a log's records."""

    @property
    def name(self) -> str:
        """Its name for ``--format``."""

    @property
    def about(self) -> str:
        """What it is, in a few words."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether a record has this format's own fields."""

    def read(self, record: Mapping[str, Any]) -> Logged:
        """The interaction of a record; Skipped if it has none that can be learnt from."""
