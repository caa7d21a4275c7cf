"""Reading a log once: what can be learnt from, and samples of it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from echolm_client.cli.console import CommandError

from echolm.cli.examples.data import progress
from echolm.cli.learn_from.options import FIELDS, logged_llms

if TYPE_CHECKING:  # what is slow to import is imported when the command runs
    from echolm.past_traffic.log import PastLog, Skips
    from echolm.past_traffic.record import Logged
    from echolm.settings import Settings

_MEASURED = 4_096  # requests from which request statistics are made


@dataclass
class Read:
    """What reading the log has found.

    Attributes:
        usable: interactions that can be learnt from.
        sample: those that are replayed, in their order.
        measured: those of which request statistics are made.
    """

    log: PastLog
    fingerprint: str
    skips: Skips
    usable: int = 0
    sample: list[Logged] = field(default_factory=list)
    measured: list[Logged] = field(default_factory=list)

    @property
    def figures(self) -> dict[str, Any]:
        """What was read, for JSON."""
        skipped = {
            reason: {"count": count, "first": self.skips.first[reason]}
            for reason, count in self.skips.counts.most_common()
        }
        records = self.usable + self.skips.counts.total()
        return {
            "format": self.log.format.name,
            "records": records,
            "usable": self.usable,
            "skipped": skipped,
        }

    @property
    def lines(self) -> list[str]:
        """What was read, for people."""
        figures = self.figures
        lines = [
            f"read        {figures['records']} records of format {figures['format']}, "
            f"{self.usable} of them usable"
        ]
        lines += [
            f"            {entry['count']} skipped: {reason} (first: {entry['first']})"
            for reason, entry in figures["skipped"].items()
        ]
        return lines


def read_log(args: argparse.Namespace, settings: Settings) -> Read:
    """Read the log once: count, and draw the samples."""
    from echolm.past_traffic.acceptance import Acceptance
    from echolm.past_traffic.log import Skips, fingerprint, open_log
    from echolm.past_traffic.sample import HashSample

    reference = settings.reference_llm.name
    columns = dict(args.column)
    if unknown := sorted(columns.keys() - set(FIELDS)):
        raise CommandError(f"--column: expected fields among {list(FIELDS)}, got {unknown}")
    log = open_log(
        args.log,
        args.format,
        tenant=args.tenant,
        tenant_from=args.tenant_from,
        columns=columns,
        accept=Acceptance(settings, logged_llms(args, settings), reference),
        strict=args.strict,
    )
    read = Read(log, fingerprint(args.log), Skips())
    sample, measured = HashSample(0 if args.no_replay else args.sample), HashSample(_MEASURED)
    size = sum(path.stat().st_size for path in args.log)
    with progress("reading (bytes)", size) as advance:
        for logged in log.read(read.skips, advance):
            read.usable += 1
            measured.offer(logged)
            if logged.llm == reference and logged.tenant not in settings.judging.exclude_tenants:
                sample.offer(logged)
    read.sample, read.measured = sample.all(), measured.all()
    return read
