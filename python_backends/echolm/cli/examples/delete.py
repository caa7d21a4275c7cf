"""``echolm examples delete``: delete examples for good."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable

from echolm_client.cli.arguments import Subparsers
from echolm_client.cli.console import CommandError, complain, note, write
from echolm_client.cli.exit_codes import FAILED, OK

from echolm.cli.examples.data import ExampleData, add_example_verb, opened
from echolm.conversation import readable
from echolm.examples.events import CHANGE, change
from echolm.store.base import Example

_BATCH = 250
_SETTLE_S = 1.0


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_example_verb(
        subparsers,
        run,
        "delete",
        "delete examples for good",
        "Those are deleted to which all of --id, --tenant and --match apply that are given. The "
        "exit code is 1 if there are none.",
    )
    parser.add_argument(
        "--id",
        type=int,
        action="append",
        default=[],
        help="the example with this id; may be given several times",
    )
    parser.add_argument("--tenant", help="all of this tenant")
    parser.add_argument("--match", metavar="REGEX", help="whose request or response contains this")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    """Find, ask and delete; returns the exit code."""
    applies = _filter(args)
    with opened(args) as data:
        ids, pending = _find(data, args, applies)
        total = set(ids) | set(pending)
        if not total:
            return complain("there are no such examples: nothing was deleted", FAILED)
        if not args.yes and not _confirmed(len(total)):
            write("nothing was deleted\n")
            return FAILED
        while ids or pending:
            total |= set(ids) | set(pending)
            data.write_ahead_log.remove(pending)
            for start in range(0, len(ids), _BATCH):
                part = ids[start : start + _BATCH]
                data.store.delete(part)
                data.log.append(CHANGE, change(removed=part, reason="deleted"))
            # A running server may just be writing what it had read from its write-ahead log before.
            time.sleep(_SETTLE_S)
            ids, pending = _find(data, args, applies)
        damaged = 0 if args.id else sum(map(len, data.store.damaged()))
        _leave_no_trace(data)
        data.statistics.follow(data.log)
    write(f"deleted {len(total)} examples\n")
    if damaged:
        return complain(
            f"{damaged} rows are damaged, and nobody knows whose they are; "
            "`echolm examples check --repair` removes them",
            FAILED,
        )
    return OK


def _filter(args: argparse.Namespace) -> Callable[[Example], bool]:
    if not args.id and args.tenant is None and args.match is None:
        raise CommandError("delete: expected --id, --tenant or --match, got none of them")
    try:
        pattern = None if args.match is None else re.compile(args.match)
    except re.error as error:
        raise CommandError(
            f"delete: --match: expected a regular expression, got {args.match!r}: {error}"
        ) from error

    def applies(example: Example) -> bool:
        return (
            (not args.id or example.id in args.id)
            and (args.tenant is None or example.tenant == args.tenant)
            and (
                pattern is None
                or any(map(pattern.search, (readable(example.request), example.response)))
            )
        )

    return applies


def _find(
    data: ExampleData, args: argparse.Namespace, applies: Callable[[Example], bool]
) -> tuple[list[int], list[int]]:
    """Ids in the store and in the write-ahead log."""
    if args.id and args.tenant is None and args.match is None:
        ids = sorted(data.store.present(args.id))  # damaged ones as well
    else:
        batches = [data.store.get(args.id)] if args.id else data.store.scan(args.tenant)
        ids = [e.id for batch in batches for e, _ in batch if applies(e)]
    waiting = data.write_ahead_log.oldest(data.settings.examples.max_pending)
    return ids, [e.id for e, _ in waiting if applies(e)]


def _confirmed(number: int) -> bool:
    note(f"delete {number} examples for good? [y/N]")
    answer = sys.stdin.readline()
    if not answer:
        raise CommandError(
            "delete: expected an answer on standard input, got none; give --yes where nobody can "
            "be asked"
        )
    return answer.strip().lower() == "y"


def _leave_no_trace(data: ExampleData) -> None:
    """Rewrite the files that may still hold the texts of deleted examples."""
    from echolm.serving.data_dir import milvus_database
    from echolm.serving.milvus_lite import vacuum

    data.write_ahead_log.wipe()
    if data.settings.retrieval.milvus_uri.startswith("unix:"):
        vacuum(milvus_database(data.settings.data_dir))
    else:
        data.store.compact()
