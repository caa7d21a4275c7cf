"""A log as a whole: its format, and the interactions in it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from echolm.errors import InvalidRequestError
from echolm.past_traffic.chat import decoded
from echolm.past_traffic.columns import Columns
from echolm.past_traffic.langfuse import Langfuse
from echolm.past_traffic.litellm import LiteLLM
from echolm.past_traffic.openai import OpenAI
from echolm.past_traffic.openai_batch import OpenAIBatch, joined
from echolm.past_traffic.reading import Row, is_utf8, rows
from echolm.past_traffic.record import BROKEN, NOT_UTF8, UNKNOWN, Format, Logged, Skipped

FORMATS: tuple[Format, ...] = (OpenAIBatch(), LiteLLM(), Langfuse(), OpenAI(), Columns())
"""All formats, those first whose fields are no other's."""

_LOOKED_AT = 200  # records from which the format is told


def _ignore(count: int) -> None: ...


def _as_it_is(logged: Logged) -> Logged:
    return logged


@dataclass(frozen=True)
class Skips:
    """Records that are not learnt from, by reason.

    Attributes:
        first: where the first one of each reason is.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, row: Row) -> None:
        """Count one."""
        self.counts[reason] += 1
        self.first.setdefault(reason, f"{row.file}:{row.line}")


@dataclass(frozen=True)
class PastLog:
    """One or several files of one format.

    Attributes:
        tenant: whose requests all are, unless ``tenant_from`` says it of each.
        tenant_from: dotted path of the field that names a record's tenant; empty: none does.
        accept: completes an interaction; Skipped if it is not to be learnt from.
        strict: whether a record that cannot be read ends it all.
    """

    paths: tuple[Path, ...]
    format: Format
    tenant: str
    tenant_from: str = ""
    accept: Callable[[Logged], Logged] = _as_it_is
    strict: bool = False

    def read(self, skips: Skips, on_bytes: Callable[[int], None] = _ignore) -> Iterator[Logged]:
        """The interactions, the same ones in the same order each time.

        Args:
            skips: counts the other records.

        Raises:
            InvalidRequestError: a file cannot be read; or ``strict``, and a record cannot.
        """
        every: Iterable[Row] = (row for path in self.paths for row in rows(path, on_bytes))
        if isinstance(self.format, OpenAIBatch):
            every = joined(every)
        for row in every:
            try:
                yield self._logged(row)
            except Skipped as skipped:
                skips.add(skipped.reason, row)
                if self.strict and skipped.reason in BROKEN:
                    raise InvalidRequestError(
                        f"{row.file}:{row.line}: expected a record of format {self.format.name}, "
                        f"got: {skipped.reason}; mend it, or leave --strict out to skip it"
                    ) from skipped

    def _logged(self, row: Row) -> Logged:
        if row.record is None:
            raise Skipped(row.problem)
        try:
            logged = self.format.read(row.record)
        except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
            raise Skipped(UNKNOWN) from error  # a shape that nobody has thought of
        logged = replace(logged, tenant=self._tenant(row.record))
        texts = (logged.request, logged.response, logged.system_prompt, logged.tenant)
        if not all(map(is_utf8, texts)):
            raise Skipped(NOT_UTF8)
        return self.accept(logged)

    def _tenant(self, record: Mapping[str, Any]) -> str:
        if not self.tenant_from:
            return self.tenant
        value: Any = record
        for name in self.tenant_from.split("."):
            value = decoded(value)
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is None or isinstance(value, Mapping | list) or not str(value).strip():
            raise Skipped("no tenant")  # it must not become another tenant's example
        return str(value)


def open_log(
    paths: Sequence[Path],
    name: str = "",
    *,
    tenant: str,
    tenant_from: str = "",
    columns: Mapping[str, str] | None = None,
    accept: Callable[[Logged], Logged] = _as_it_is,
    strict: bool = False,
) -> PastLog:
    """A log of the named format, or of the one that its records are recognised by.

    Raises:
        InvalidRequestError: a file cannot be read, or its format is not known.
    """
    formats: list[Format] = [
        Columns(columns) if columns and f.name == Columns.name else f for f in FORMATS
    ]
    format = next(f for f in formats if f.name == name) if name else _recognised(paths, formats)
    return PastLog(tuple(paths), format, tenant, tenant_from, accept, strict)


def _recognised(paths: Sequence[Path], formats: Sequence[Format]) -> Format:
    records = [
        row.record
        for path in paths
        for row in islice(rows(path), _LOOKED_AT)
        if row.record is not None
    ]
    matches = {f.name: sum(map(f.matches, records)) for f in formats}
    best = max(formats, key=lambda f: matches[f.name])  # of equals the first
    if matches[best.name]:
        return best
    known = "; ".join(f"{f.name} ({f.about})" for f in formats)
    got = f"fields {', '.join(list(records[0])[:12])}" if records else "no record that can be read"
    raise InvalidRequestError(
        f"{paths[0]}: expected a log of one of the formats {known}; got {got}; name the format "
        "with --format, or the columns of a CSV with --column"
    )


def fingerprint(paths: Sequence[Path]) -> str:
    """A text that is the same for the same contents, in the same order."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        try:
            with open(path, "rb") as stream:
                while piece := stream.read(2**20):
                    digest.update(piece)
        except OSError as error:
            raise InvalidRequestError(
                f"{path}: expected a file to read, got: {error.strerror or error}"
            ) from error
        digest.update(b"\0")
    return digest.hexdigest()
