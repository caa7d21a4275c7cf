"""``echolm learn-from``: past traffic becomes examples, and shows when the small LLM will do."""

from __future__ import annotations

from pathlib import Path

from echolm_client.cli.arguments import Subparsers, add_verb, key_value, positive

from echolm.cli.data_directory import add_options
from echolm.cli.learn_from.command import run
from echolm.cli.learn_from.options import FIELDS, FORMATS, amount, share


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "learn-from",
        help="learn from the log of another front door",
        description="Take requests and answers of a log: those of one turn of text that are "
        "complete and pass screening become examples. Then the other LLMs answer a sample of the "
        "requests, with examples (never the request's own) and without, the judge of the "
        "configuration compares their answers with the logged ones, and the router learns. It "
        "tells what that costs and asks before it begins, may be interrupted, and goes on where "
        "it ended. Ends with what routing requests like these will bring. Works while a server "
        "runs on the data directory, whose LLMs it asks, and, with --no-replay, while none does.",
    )
    parser.add_argument(
        "log",
        type=Path,
        nargs="+",
        metavar="LOG",
        help="JSON lines, a JSON array, or CSV (.csv), also packed (.gz); a batch's input and "
        "output file together",
    )
    add_options(parser)
    reading = parser.add_argument_group("the log")
    reading.add_argument(
        "--format",
        choices=FORMATS,
        default="",
        help="default: the one that the records are recognised by",
    )
    reading.add_argument(
        "--column",
        type=key_value,
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help=f"name of the CSV column that holds a field: {', '.join(FIELDS)} (default: the "
        "field's name)",
    )
    reading.add_argument(
        "--tenant", default="public", help="whose requests they are (default: %(default)s)"
    )
    reading.add_argument(
        "--tenant-from",
        default="",
        metavar="FIELD",
        help="field that names each record's tenant, as metadata.team or a CSV column; records "
        "without it are skipped",
    )
    reading.add_argument(
        "--map",
        type=key_value,
        action="append",
        default=[],
        metavar="MODEL=LLM",
        help="answers of this logged model (may have * in it) count as this LLM's, and those of "
        "models that are not named are skipped (default: all count as the strongest LLM's)",
    )
    reading.add_argument(
        "--strongest", metavar="MODEL", help="the same as --map with the strongest LLM"
    )
    reading.add_argument(
        "--strict", action="store_true", help="stop at the first record that cannot be read"
    )
    asking = parser.add_argument_group("the replay")
    asking.add_argument(
        "--no-replay", action="store_true", help="only store examples; no LLM is asked"
    )
    asking.add_argument(
        "--sample",
        type=positive,
        default=400,
        metavar="N",
        help="requests that are replayed (default: %(default)s)",
    )
    asking.add_argument(
        "--concurrent",
        type=positive,
        default=8,
        metavar="N",
        help="answers and judgements at a time (default: %(default)s)",
    )
    asking.add_argument(
        "--price",
        type=key_value,
        action="append",
        default=[],
        metavar="LLM=INPUT:OUTPUT",
        help="money for a million tokens that an LLM reads and writes; for all LLMs or none",
    )
    asking.add_argument(
        "--budget",
        type=amount,
        metavar="AMOUNT",
        help="most that all replays of this log may cost: money with --price, tokens without",
    )
    asking.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(
        "--quality",
        type=share,
        default=0.49,
        metavar="SHARE",
        help="win rate against the logged answers, ties half, for which the cost weight is "
        "wanted (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)
