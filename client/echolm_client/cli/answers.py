"""The last answers of ``echolm ask``, remembered for ``rate`` and ``prefer``."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from echolm_client._config import DEFAULT_URL
from echolm_client.cli.console import CommandError, complain

NAMES = ("last", "previous")
"""What remembered answers are called, the newest first."""

TOKEN_HELP = "'last' or 'previous' for an answer of 'echolm ask', its feedback token, or '-' to "
TOKEN_HELP += "read the token from a line of standard input"


@dataclasses.dataclass(frozen=True)
class RememberedAnswer:
    """What feedback needs of an answer; no text of anyone's."""

    url: str
    token: str


def path() -> Path:
    """The file, in the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative path.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "echolm" / "last_answers.json"


def load() -> list[RememberedAnswer]:
    """The answers remembered, the newest first; none if there is no file that can be read."""
    try:
        values: Any = json.loads(path().read_text())
        return [RememberedAnswer(str(value["url"]), str(value["token"])) for value in values]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def remember(answer: RememberedAnswer) -> None:
    """Put one before the others; a cache that cannot be written is reported and costs no more."""
    answers = [answer, *load()][: len(NAMES)]
    file = path()
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # The token lets its holder rate the answer: it is for this user only.
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            json.dump([dataclasses.asdict(each) for each in answers], stream)
        temporary.replace(file)
    except OSError as error:
        complain(f"the answer is not remembered for rate and prefer: {error}")


def named(text: str) -> RememberedAnswer:
    """The answer that a person means by ``last``, ``previous``, ``-`` or its token.

    A token says nothing of its server: its ``url`` is empty.

    Raises:
        CommandError: no such answer is remembered, or standard input has no such line.
    """
    if text == "-":
        if not (token := sys.stdin.readline().strip()):
            raise CommandError("standard input: expected a line with a feedback token, got none")
        return RememberedAnswer("", token)
    if text not in NAMES:
        return RememberedAnswer("", text)
    answers = load()
    if NAMES.index(text) >= len(answers):
        raise CommandError(
            f"expected an answer of 'echolm ask' that is remembered as {text!r}, got no {text} "
            "answer; ask first, or give a feedback token"
        )
    return answers[NAMES.index(text)]


def server_of(*answers: RememberedAnswer) -> str:
    """The address of the server that gave the answers.

    Raises:
        CommandError: they are of two servers.
    """
    urls = sorted({answer.url for answer in answers if answer.url})
    if len(urls) > 1:
        raise CommandError(
            f"expected answers of one server, got {' and '.join(urls)}; name the server of both "
            "with --url"
        )
    return urls[0] if urls else DEFAULT_URL
