"""``echolm examples import``: put in examples from a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from echolm_client.cli.arguments import Subparsers
from echolm_client.cli.console import CommandError, note
from echolm_client.cli.exit_codes import FAILED

from echolm.cli.data_directory import settings_from
from echolm.cli.examples.data import (
    ExampleData,
    add_example_verb,
    opened,
    progress,
    write_report,
)
from echolm.errors import InvalidRequestError, UnavailableError

if TYPE_CHECKING:  # what is slow to import is imported when the command runs
    from echolm.examples.importing import ImportCounts, Importer, Line
    from echolm.examples.pairs import Pair
    from echolm.examples.transfer import Header
    from echolm.past_traffic.reading import Row
    from echolm.store.base import Stored

_BATCH = 250
_MOST_TOLD = 1_000  # messages about refused lines
_MOST_RANGES = 20  # in one of them


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_example_verb(
        subparsers,
        run,
        "import",
        "put in examples from a file",
        "The file has JSON lines, a JSON array or CSV: pairs of a request (or prompt, question, "
        "instruction, input) and a response (or completion, answer, output, reference), "
        "conversations as messages that end with the answer, or what export wrote. What is not "
        "stored yet passes the screening and the limits of live interactions. A line that cannot "
        "be taken is told with its number; all others are in, and the exit code is 1. A data "
        "directory that does not exist is made. It may be run again: nothing is stored twice.",
    )
    parser.add_argument("file", help="the file, which may be packed by gzip; - for standard input")
    parser.add_argument(
        "--tenant", default="", help="whose pairs they are (default: the line's tenant, or public)"
    )
    parser.add_argument(
        "--system-prompt",
        type=Path,
        metavar="FILE",
        help="text of the system prompt of pairs that have none; requests with the same one find "
        "them",
    )
    parser.add_argument("--dry-run", action="store_true", help="tell what would be, write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Take in what can be; returns the exit code."""
    from echolm.examples.importing import ImportCounts
    from echolm.serving.serve import prepare_embedder

    system_prompt = _text_of(args.system_prompt) if args.system_prompt else ""
    rows = _rows(args.file)
    first = next(rows, None)
    if first is None:
        raise CommandError(f"{args.file}: expected JSON lines, got an empty file")
    header = _header(first, args)
    told = _Told()
    counts = ImportCounts(told)
    remaining = rows if header else chain([first], rows)
    parsed = _parsed(remaining, header, args.tenant, system_prompt, counts)
    begin = next(parsed, None)
    if begin is not None:  # else there is nothing to make a data directory for
        prepare_embedder(settings_from(args, must_exist=args.dry_run), note)
        with opened(args, must_exist=args.dry_run) as data:
            importer = _importer(data, args.dry_run, counts)
            lines = (_line(*found, header, data) for found in chain([begin], parsed))
            _take_in(importer, lines)
            data.statistics.follow(data.log)
    told.flush()
    return _report(args, counts)


class _Told:
    """Tells which lines are refused, and why; neighbours for the same reason together."""

    def __init__(self) -> None:
        self._message = ""
        self._ranges: list[tuple[int, int]] = []
        self._count = 0

    def __call__(self, line: int, message: str) -> None:
        if message != self._message or len(self._ranges) == _MOST_RANGES:
            self.flush()
        self._message = message
        if self._ranges and self._ranges[-1][1] == line - 1:
            self._ranges[-1] = (self._ranges[-1][0], line)
        else:
            self._ranges.append((line, line))

    def flush(self) -> None:
        """Tell what was not told yet."""
        if not self._ranges:
            return
        self._count += 1
        if self._count <= _MOST_TOLD:
            lines = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in self._ranges)
            several = len(self._ranges) > 1 or self._ranges[0][0] != self._ranges[0][1]
            note(f"{'lines' if several else 'line'} {lines}: {self._message}")
        elif self._count == _MOST_TOLD + 1:
            note("more lines are refused, and counted below")
        self._ranges = []


def _rows(file: str) -> Iterator[Row]:
    from echolm.past_traffic.reading import rows, rows_of

    return rows_of(Path("-"), sys.stdin.buffer) if file == "-" else rows(Path(file))


def _header(first: Row, args: argparse.Namespace) -> Header | None:
    """The header, if it is a file that export wrote."""
    from echolm.examples.transfer import read_header

    header = read_header(first.record) if first.record is not None else None
    if header and (args.tenant or args.system_prompt):
        raise CommandError(
            "import: --tenant, --system-prompt: expected a file of pairs, got one that export "
            "wrote: its examples have their own; leave the options out"
        )
    return header


def _text_of(path: Path) -> str:
    try:
        # An editor ends a file with a newline, which requests do not have.
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(
            f"--system-prompt: expected a file of text in UTF-8, got {path}: {error}"
        ) from error


def _parsed(
    rows: Iterator[Row],
    header: Header | None,
    tenant: str,
    system_prompt: str,
    counts: ImportCounts,
) -> Iterator[tuple[int, Pair | Stored]]:
    """What the lines hold, with their numbers; those that hold nothing are refused."""
    from echolm.examples.pairs import read_pair
    from echolm.examples.transfer import read_example

    for row in rows:
        try:
            if row.record is None:
                raise InvalidRequestError.of("record", "one JSON object in UTF-8", row.problem)
            if header is None:
                yield row.line, read_pair(row.record, tenant, system_prompt)
            else:
                yield row.line, read_example(row.record, header)
        except InvalidRequestError as error:
            counts.refuse(row.line, "invalid", str(error))


def _line(number: int, found: Pair | Stored, header: Header | None, data: ExampleData) -> Line:
    from echolm.examples.importing import Line, line_of_pair
    from echolm.examples.pairs import Pair

    if isinstance(found, Pair):
        return line_of_pair(number, found, data.settings)
    example, embedding = found
    of_this_model = header is not None and (header.embedding, header.dimension) == (
        data.store.embedding_name,
        data.store.dimension,
    )
    return Line(number, example, embedding if of_this_model else None)


def _importer(data: ExampleData, dry_run: bool, counts: ImportCounts) -> Importer:
    from echolm.examples.admission import AdmissionPolicy
    from echolm.examples.deduplication import RequestIndex
    from echolm.examples.importing import Importer
    from echolm.wiring.retrieval import build_text_embedder

    index = None
    if data.settings.examples.deduplicate:
        with progress("reading the store", data.store.count()) as advance:
            index = RequestIndex.of(data.store, advance)
    embed = None if dry_run else build_text_embedder(data.settings)
    admission = AdmissionPolicy(data.settings)
    return Importer(data.store, data.log, admission, embed, index, counts)


def _take_in(importer: Importer, lines: Iterator[Line]) -> None:
    from echolm.examples.transfer import batched

    last = 0
    try:
        with progress("importing", None) as advance:
            for batch in batched(lines, _BATCH):
                importer.take_in(batch)
                last = batch[-1].number
                advance(len(batch))
    except UnavailableError as error:
        raise UnavailableError(
            f"{error}; the lines up to {last} are done: import the file again when it answers, "
            "nothing is stored twice"
        ) from error


def _report(args: argparse.Namespace, counts: ImportCounts) -> int:
    from echolm.examples.importing import Outcome

    outcomes = {outcome: counts.outcomes[outcome] for outcome in Outcome}
    taken = outcomes[Outcome.NEW] + outcomes[Outcome.REPLACED]
    known = outcomes[Outcome.KNOWN] + outcomes[Outcome.NO_BETTER]
    refused = outcomes[Outcome.REFUSED]
    figures = {
        "in": taken,
        "replaced": outcomes[Outcome.REPLACED],
        "already_there": known,
        "no_better": outcomes[Outcome.NO_BETTER],
        "refused": refused,
        "refusals": dict(counts.refusals),
        "dry_run": args.dry_run,
    }
    reasons = ", ".join(f"{n} {reason}" for reason, n in counts.refusals.most_common())
    lines = [
        f"{'would be in' if args.dry_run else 'in':15}{taken}, "
        f"{figures['replaced']} of them in place of another answer",
        f"{'already there':15}{known}, {figures['no_better']} of them with an answer no worse",
        f"{'refused':15}{refused}" + (f": {reasons}" if reasons else ""),
    ]
    code = write_report(args, figures, lines)
    return FAILED if refused else code
