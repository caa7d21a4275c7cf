"""``echolm examples check``: compare the store with the statistics, and look for duplicates."""

from __future__ import annotations

import argparse
from dataclasses import replace

from echolm_client.cli.arguments import Subparsers
from echolm_client.cli.console import complain, write
from echolm_client.cli.exit_codes import FAILED, OK

from echolm.cli.examples.data import add_example_verb, opened, progress


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_example_verb(
        subparsers,
        run,
        "check",
        "compare store and statistics, and look for damaged rows and requests stored twice",
        "The exit code is 1 if anything is found that --repair would mend.",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="mend what differs; damaged rows are removed, and of a request that is stored twice "
        "the better answer stays",
    )


def run(args: argparse.Namespace) -> int:
    """Every example must have statistics, all statistics an example, and no request two answers."""
    from echolm.examples.consistency import examine, repair

    with opened(args) as data:
        parts = (data.store, data.statistics, data.log)
        deduplicate = data.settings.examples.deduplicate
        with progress("checking", data.store.count()) as advance:
            if args.repair:
                findings = repair(*parts, deduplicate, lambda scanned: advance(len(scanned)))
            else:
                findings = examine(*parts, lambda scanned: advance(len(scanned)))
        rows = (
            ("examples", data.store.count(), False),
            ("damaged", findings.damaged, args.repair),
            ("without statistics", findings.without_statistics, args.repair),
            ("statistics alone", findings.without_example, args.repair),
            ("requests stored twice", findings.duplicates, args.repair),
            ("half replaced", findings.interrupted, args.repair),
            ("not stored yet", len(data.write_ahead_log), False),
        )
    for title, number, is_mended in rows:
        write(f"{title:25}{number}{' (mended)' if number and is_mended else ''}\n")
    if not deduplicate:  # then they are meant to be
        findings = replace(findings, duplicates=0)
    if args.repair or not findings.any:
        return OK
    return complain("`echolm examples check --repair` mends this", FAILED)
