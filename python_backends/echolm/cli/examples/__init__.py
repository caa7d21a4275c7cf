"""``echolm examples``: look into the example store, take examples out, put them in, check it.

Works on a running server's store as on one at rest.
"""

from __future__ import annotations

from echolm_client.cli.arguments import Subparsers, add_verb

from echolm.cli.data_directory import add_options
from echolm.cli.examples import check, delete, export, import_, reembed, replay, show, stats, top


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "examples",
        help="the stored examples",
        description="Look into the example store, take examples out, put them in, check it, and "
        "improve them. Works while a server runs on the data directory and while none does.",
    )
    add_options(parser)
    commands = parser.add_subparsers(dest="examples_command", required=True, metavar="COMMAND")
    for verb in (stats, top, show, delete, export, import_, reembed, check, replay):
        verb.add_subcommand(commands)
