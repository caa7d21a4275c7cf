"""``echolm keys``: API keys of the gateway."""

from __future__ import annotations

import argparse
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from echolm_client.cli.arguments import Subparsers, add_verb, not_empty, positive
from echolm_client.cli.console import note, write
from echolm_client.cli.exit_codes import OK

from echolm.cli.data_directory import add_options, settings_from
from echolm.primitives import DEFAULT_TENANT, check_tenant

if TYPE_CHECKING:
    from echolm.gateway.keys import Key, KeyFile

_LIMITS = {
    "requests_per_minute": "requests in a minute, on average and at once",
    "tokens_per_minute": "tokens, of prompts and answers, in a minute, on average and at once",
    "tokens_per_day": "tokens in a day (UTC)",
}


def add_subcommand(subparsers: Subparsers) -> None:
    parser = add_verb(
        subparsers,
        "keys",
        help="make, list and revoke API keys of the gateway",
        description="API keys of the gateway, in keys.json of the data directory or the file that "
        "gateway.keys_path names. A running server takes changes within seconds.",
    )
    verbs = parser.add_subparsers(dest="keys_command", required=True, metavar="COMMAND")
    add = add_verb(
        verbs,
        "add",
        help="make a key, which is shown once",
        description="Make a key and print it. The file keeps its hash only.",
    )
    add.add_argument("--name", default="", help="what it is for, for people")
    add.add_argument(
        "--tenant",
        type=not_empty,
        default=DEFAULT_TENANT,
        help="whose requests it makes (default: %(default)s)",
    )
    add.add_argument(
        "--role",
        choices=("user", "admin"),
        default="user",
        help="an admin may name any tenant and read the metrics (default: %(default)s)",
    )
    for name, meaning in _LIMITS.items():
        add.add_argument(
            f"--{name.replace('_', '-')}",
            type=positive,
            metavar="N",
            help=f"{meaning} (default: no limit)",
        )
    add.add_argument(
        "--expires-in", type=positive, metavar="DAYS", help="when it ends (default: never)"
    )
    add.set_defaults(func=_add)
    listed = add_verb(
        verbs,
        "list",
        help="show all keys, but not their secrets",
        description="Show id, state, role, tenant, limits and name of each key.",
    )
    listed.set_defaults(func=_list)
    revoke = add_verb(
        verbs,
        "revoke",
        help="refuse a key from now on",
        description="Refuse a key from now on. It stays in the list.",
    )
    revoke.add_argument("id", help="as `echolm keys list` shows it")
    revoke.set_defaults(func=_revoke)
    for verb in (add, listed, revoke):
        add_options(verb)


def _add(args: argparse.Namespace) -> int:
    check_tenant(args.tenant, "--tenant")
    if args.name:
        check_tenant(args.name, "--name")  # `echolm keys list` shows it
    days = args.expires_in
    expires = None if days is None else datetime.now(timezone.utc) + timedelta(days=days)
    limits = {name: getattr(args, name) for name in _LIMITS}
    file = _file(args)
    key, secret = file.add(
        name=args.name, tenant=args.tenant, role=args.role, expires=expires, **limits
    )
    note(f"{key.id} for tenant {key.tenant} in {file.path}; the key is shown this once:")
    write(f"{secret}\n")
    return OK


def _list(args: argparse.Namespace) -> int:
    for key in _file(args).read():
        limits = [f"{name}={value}" for name in _LIMITS if (value := getattr(key, name))]
        parts = [key.id, _state(key), key.role, f"tenant={key.tenant}", *limits, key.name]
        write("  ".join(filter(None, parts)) + "\n")
    return OK


def _state(key: Key) -> str:
    if key.revoked is not None:
        return f"revoked {key.revoked:%Y-%m-%d}"
    if key.expires is None:
        return "valid"
    over = key.expires <= datetime.now(timezone.utc)
    return f"{'expired' if over else 'until'} {key.expires:%Y-%m-%d}"


def _revoke(args: argparse.Namespace) -> int:
    key = _file(args).revoke(args.id)
    note(f"{key.id} is revoked")
    return OK


def _file(args: argparse.Namespace) -> KeyFile:
    from echolm.gateway.keys import KeyFile

    return KeyFile(settings_from(args, must_exist=False).keys_path)
