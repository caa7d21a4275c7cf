"""The command line itself: verbs, help, exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest
from commands import ECHOLM, run
from echolm.cli import build, examples
from echolm.cli.main import build_parser, main
from echolm.errors import (
    CancelledError,
    ConfigurationError,
    ContextLengthError,
    InvalidRequestError,
    UnavailableError,
)
from echolm_client import InvalidRequest, ServerError, Timeout, Unavailable


def parsers(
    parser: argparse.ArgumentParser, name: str = "echolm"
) -> Iterator[tuple[str, argparse.ArgumentParser, str | None]]:
    """All parsers, with the line that the list of their siblings has for them."""
    yield name, parser, "the command itself"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            lines = {choice.dest: choice.help for choice in action._choices_actions}
            for verb, child in action.choices.items():
                for path, descendant, line in parsers(child, f"{name} {verb}"):
                    yield path, descendant, lines.get(verb) if descendant is child else line


BUILD = ["build", "--profile=p", "--small=s", "--large=l"]
READING = ("check", "delete", "export", "reembed", "replay", "show", "stats", "top")
VERBS = {name: (parser, line) for name, parser, line in parsers(build_parser())}


def test_the_verbs_are_all_there() -> None:
    expected = ["ask", "build", "examples", "prefer", "rate", "serve", "stats"]
    expected += [f"examples {verb}" for verb in (*READING, "import")]
    assert {f"echolm {verb}" for verb in expected} <= set(VERBS)
    assert "echolm replay" not in VERBS


@pytest.mark.parametrize("name", sorted(VERBS))
def test_help_is_complete(name: str) -> None:
    parser, line = VERBS[name]
    assert line and parser.description
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        assert action.help, f"{name}: {action.dest}"
    assert parser.format_help()  # no % in it that argparse stumbles over


def test_python_m_is_the_command_and_help_has_the_exit_codes() -> None:
    done = run(*ECHOLM, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    shown = " ".join(done.stdout.split())
    assert shown.startswith("usage: echolm ")
    assert "Exit codes: 0 done; 1 failed" in shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("why"), 2),
        (InvalidRequestError("why"), 2),
        (ContextLengthError("why"), 2),
        (UnavailableError("why"), 1),
        (CancelledError("why"), 1),
        (InvalidRequest("why"), 2),
        (Unavailable("why"), 1),
        (Timeout("why"), 1),
        (ServerError("why"), 1),
        (OSError(28, "why"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_verb_has_the_same_exit_codes(
    error: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(build, "run", fail)
    monkeypatch.setattr(examples.stats, "run", fail)
    for words in (["examples", "stats"], BUILD):
        assert main(words) == code
        out, err = capsys.readouterr()
        says = "interrupted" if code == 130 else "why"
        assert (out, err) == ("", f"echolm: {says}\n")


def test_options_of_the_data_directory_stand_before_and_behind_the_subcommand() -> None:
    parser = build_parser()
    for words in ("--data-dir d --config c stats", "stats --data-dir d --config c"):
        args = parser.parse_args(["examples", *words.split()])
        assert (str(args.data_dir), str(args.config)) == ("d", "c")
    assert parser.parse_args(["examples", "stats"]).data_dir is None


@pytest.mark.parametrize(
    "words",
    [
        "",
        "nonsense",
        "replay",
        "examples",
        "examples nonsense",
        "examples top -n 0",
        "serve --host=",
        "examples show one",
        "examples replay --number none",
        "build --profile p --small s --large l --set nothing",
    ],
)
def test_a_wrong_command_line_ends_with_2(words: str) -> None:
    with pytest.raises(SystemExit) as raised:
        main(words.split())
    assert raised.value.code == 2
