"""Generated vocabularies: slot values and opaque house conventions.

Slot values never consist of lower-case letters alone: they hold a digit, a
capital, a dot or a hyphen. The pair's tokenizer relies on it to give a value
the same tokens wherever it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

_ONSETS = [
    "b",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "z",
    "b",
    "d",
    "f",
    "g",
    "k",
    "l",
    "m",
    "n",
    "r",
    "s",
    "t",
    "br",
    "dr",
    "tr",
    "st",
]
_VOWELS = ["a", "e", "i", "o", "u"]
_CODAS = ["", "", "", "", "n", "r", "l", "s", "m", "x"]
_UPPER = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_ALNUM = "abcdefghijkmnpqrstuvwxyz23456789"


def syllable(rng: Random) -> str:
    return rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)


def word(rng: Random) -> str:
    """A made-up lower-case word of two syllables, seldom three, such as ``tovrel``."""
    return "".join(syllable(rng) for _ in range(rng.choice((2, 2, 2, 2, 3))))


def _digits(rng: Random, low: int, high: int) -> str:
    """A number of ``low`` to ``high`` digits without a leading zero."""
    count = rng.randint(low, high)
    return str(rng.randint(10 ** (count - 1), 10**count - 1))


def _letters(rng: Random, count: int) -> str:
    return "".join(rng.choice(_UPPER) for _ in range(count))


def _host(rng: Random) -> str:
    stem, kind = word(rng), rng.choice(("db", "web", "app", "gw", "n", "x", "node"))
    return f"{stem}-{kind}{_digits(rng, 1, 3)}"


def _path(rng: Random) -> str:
    root = rng.choice(("/srv", "/var/lib", "/opt", "/mnt", "/data", "/home"))
    return f"{root}/{word(rng)}" + (
        f"/{word(rng)}{rng.randint(1, 99)}" if rng.random() < 0.5 else ""
    )


def _file(rng: Random) -> str:
    stem = word(rng) + (f"_{rng.randint(1, 99)}" if rng.random() < 0.4 else "")
    return f"{stem}.{rng.choice(('csv', 'tar', 'json', 'log', 'pdf', 'txt', 'xlsx', 'sql'))}"


def _date(rng: Random) -> str:
    return f"{rng.randint(2019, 2031)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _name(rng: Random) -> str:
    return f"{word(rng).capitalize()} {word(rng).capitalize()}"


def _order(rng: Random) -> str:
    return f"{_letters(rng, rng.randint(1, 3))}-{_digits(rng, 3, 6)}"


def _ticket(rng: Random) -> str:
    return (
        "T" + "".join(rng.choice(_ALNUM) for _ in range(rng.randint(4, 6))) + str(rng.randint(0, 9))
    )


def _email(rng: Random) -> str:
    return f"{word(rng)}.{word(rng)}@{word(rng)}.{rng.choice(('io', 'com', 'org', 'net', 'eu'))}"


def _amount(rng: Random) -> str:
    return f"{_digits(rng, 1, 4)}.{rng.randint(0, 99):02d}"


def _version(rng: Random) -> str:
    return f"{rng.randint(0, 19)}.{rng.randint(0, 40)}.{rng.randint(0, 30)}"


def _time(rng: Random) -> str:
    return (
        f"{rng.randint(0, 23):02d}:{rng.choice((0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55)):02d}"
    )


#: Slot kinds and their generators.
KINDS: dict[str, Callable[[Random], str]] = {
    "host": _host,
    "path": _path,
    "file": _file,
    "date": _date,
    "name": _name,
    "order": _order,
    "ticket": _ticket,
    "email": _email,
    "amount": _amount,
    "version": _version,
    "time": _time,
    "number": lambda rng: _digits(rng, 2, 5),
    "days": lambda rng: str(rng.randint(2, 365)),
    "region": lambda rng: (
        f"{rng.choice(('eu', 'us', 'ap', 'sa', 'af'))}-{word(rng)}-{rng.randint(1, 9)}"
    ),
    "percent": lambda rng: f"{rng.randint(1, 99)}.{rng.randint(0, 9)}",
}

#: House conventions: how each style of opaque code is made.
STYLES: dict[str, Callable[[Random], str]] = {
    "word": word,
    "code": lambda rng: f"{_letters(rng, 2)}-{rng.randint(10, 99)}",
    "tag": lambda rng: f"{rng.choice('bcdfghjkmnpqrtvwxz')}{rng.randint(2, 9)}-{word(rng)}",
    "channel": lambda rng: (
        f"#{word(rng)}-{rng.choice(('ops', 'desk', 'crew', 'watch', 'room', 'hub'))}"
    ),
    "table": lambda rng: f"{word(rng)}_{word(rng)}_{rng.choice('tvfd')}{rng.randint(1, 9)}",
    "column": lambda rng: f"{word(rng)}_{rng.choice(('cd', 'id', 'amt', 'dt', 'qty', 'st', 'no'))}",
    "letter": lambda rng: f"{rng.choice(_UPPER)}{rng.randint(2, 99)}",
    "path": lambda rng: f"{word(rng)}/{word(rng)}",
    "digits": lambda rng: _digits(rng, 3, 4),
}
