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
        sampling: fields of :class:`~echolm.primitives.Sampling` that the request had.
    """

    request: str
    response: str
    system_prompt: str = ""
    models: tuple[str, ...] = ()
    tenant: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> int:
        """A 63-bit hash of the request in its scope, the same for requests that are the same."""
        digest = hashlib.blake2b(digest_size=8)
        for part in (self.tenant, self.system_prompt, plain(self.request)):
            data = part.encode()
            digest.update(len(data).to_bytes(8, "big") + data)
        return int.from_bytes(digest.digest(), "big") >> 1


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
