from __future__ import annotations

import argparse
import io
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echolm_client import Client, FakeTransport, InvalidRequest, ServerError, Unavailable, cli
from echolm_client._protocol import Call, Outputs

PAGE = """\
nv_inference_count{model="echolm",version="1"} 12
echolm_answers_total{llm="small_llm"} 9
echolm_seconds_bucket{le="1"} 4
"""


def text(value: str) -> np.ndarray[Any, Any]:
    return np.array([[value.encode()]], dtype=object)


def scripted(call: Call) -> Iterator[Outputs]:
    given = {t.name: t.array[0].tolist() for t in call.inputs}
    if call.model == "feedback":
        yield {"accepted": np.array([[given["feedback_token"] != [b"old"]]])}
        return
    asked = given["text_input"][0].decode()
    errors = {"bad": InvalidRequest("text_input: bad"), "down": Unavailable("no LLM"),
              "boom": ServerError("boom")}  # fmt: skip
    if asked in errors:
        raise errors[asked]
    if asked == "stop":
        raise KeyboardInterrupt
    pieces = ["echo ", asked] if call.model == "echolm_stream" else [f"echo {asked}"]
    for piece in pieces:
        yield {
            "text_output": text(piece),
            "llm": text("small_llm"),
            "example_ids": np.array([[4, 5]]),
            "predicted_quality": np.array([[0.75]], np.float32),
            "num_input_tokens": np.array([[3]]),
            "num_output_tokens": np.array([[2]]),
            "degraded": text("retriever: timeout" if asked == "poor" else ""),
            "feedback_token": text("" if asked == "no token" else "tok"),
        }


class Shell:
    """Runs the commands as the console script would, over a fake server."""

    def __init__(self) -> None:
        self.transport = FakeTransport(scripted, PAGE)
        self.opened: list[tuple[str, dict[str, Any]]] = []

    def open(self, url: str, **options: Any) -> Client:
        self.opened.append((url, options))
        return Client(url, transport=self.transport, **options)

    def __call__(self, *argv: str) -> int:
        parser = argparse.ArgumentParser(prog="echolm")
        cli.add_subcommands(parser.add_subparsers(required=True), self.open)
        args = parser.parse_args(argv)
        return int(args.func(args))

    def sent(self) -> dict[str, Any]:
        return {t.name: t.array[0].tolist() for t in self.transport.calls[-1].inputs}


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Shell()


def test_ask_streams_text_to_stdout_and_the_summary_to_stderr(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell("ask", "hi") == 0
    out, err = capsys.readouterr()
    assert out == "echo hi\n"
    assert shell.transport.calls[-1].model == "echolm_stream"
    assert err.count("\n") == 1
    for part in ("small_llm", "2 examples", "quality 0.75", "3 + 2 tokens", " s |", "token tok"):
        assert part in err
    assert "degraded" not in err


def test_ask_sends_what_was_given_and_nothing_else(shell: Shell) -> None:
    assert shell("ask", "hi", "--no-stream") == 0
    assert shell.sent() == {"text_input": [b"hi"]}
    options = "--no-stream --llm large_llm --max-tokens 9 --temperature 0.5 --top-p 0.5 --top-k 2"
    more = "--seed 1 --stop a --stop b --system s --tenant t --cache-control no-store"
    assert shell("ask", "hi", *options.split(), *more.split()) == 0
    assert shell.sent() == {
        "text_input": [b"hi"],
        "llm": [b"large_llm"],
        "max_tokens": [9],
        "temperature": [0.5],
        "top_p": [0.5],
        "top_k": [2],
        "seed": [1],
        "stop_words": [b"a", b"b"],
        "system_prompt": [b"s"],
        "tenant": [b"t"],
        "cache_control": [b"no-store"],
    }


def test_ask_reads_stdin(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert shell("ask", "-") == 0
    assert shell.sent()["text_input"] == [b"from a pipe"]


def test_ask_in_json_is_one_object(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell("ask", "hi é", "--json") == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (answer["text"], answer["example_ids"], err) == ("echo hi é", [4, 5], "")


def test_a_degraded_answer_says_so(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    shell("ask", "poor")
    assert "degraded: retriever: timeout" in capsys.readouterr().err


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        ("bad", 2, "text_input: bad"),
        ("down", 1, "asked localhost:8001; is the server running"),
        ("boom", 1, "boom"),
        ("stop", 130, "interrupted"),
    ],
)
def test_errors_have_a_message_and_an_exit_code(
    shell: Shell, capsys: pytest.CaptureFixture[str], asked: str, code: int, says: str, stream: str
) -> None:
    assert shell("ask", asked, stream) == code
    err = capsys.readouterr().err
    assert err.startswith("echolm: ") and says in err and err.count("\n") == 1


def test_a_bad_address_is_a_usage_error(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell("ask", "hi", "--url", "ftp://x") == 2
    assert "expected [scheme://]host" in capsys.readouterr().err


def test_rate_takes_the_last_answer_and_its_server(shell: Shell) -> None:
    assert shell("ask", "hi", "--url", "gpu1:9001") == 0
    assert shell("rate", "0.9") == 0
    assert shell.sent()["feedback_token"] == [b"tok"]
    assert shell.sent()["score"] == [pytest.approx(0.9)]
    assert shell.opened[-1][0] == "gpu1:9001"
    assert shell("rate", "0.9", "--url", "gpu2") == 0
    assert shell.opened[-1][0] == "gpu2"


def test_rate_takes_a_token(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell("rate", "1", "--token", "mine") == 0
    assert shell.sent()["feedback_token"] == [b"mine"]
    assert shell.opened[-1][0] == "localhost:8001"
    assert shell("rate", "1", "--token", "old") == 1
    assert "did not accept" in capsys.readouterr().err


def test_rate_without_a_last_answer_is_a_usage_error(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell("rate", "1") == 2
    assert "no last answer" in capsys.readouterr().err
    path = cli.LastAnswer.path()
    path.parent.mkdir(parents=True)
    path.write_text("{ broken")
    assert shell("rate", "1") == 2


def test_the_last_answer_is_private_and_holds_no_text(shell: Shell, tmp_path: Path) -> None:
    shell("ask", "a secret")
    path = tmp_path / "cache" / "echolm" / "last_answer.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_answer_without_a_token_leaves_the_last_one(shell: Shell) -> None:
    shell("ask", "hi")
    shell("ask", "no token")
    assert cli.LastAnswer.load() == cli.LastAnswer("localhost:8001", "tok")


def test_a_cache_that_cannot_be_written_is_only_reported(
    shell: Shell, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, not a directory")
    assert shell("ask", "hi") == 0
    assert "not remembered" in capsys.readouterr().err


def test_a_relative_cache_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert cli.LastAnswer.path() == Path.home() / ".cache" / "echolm" / "last_answer.json"


def test_a_terminal_that_cannot_show_a_character_gets_a_question_mark(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert shell("ask", "é") == 0
    assert raw.getvalue() == b"echo ?\n"


def test_stats_are_a_table_or_json(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    assert shell("stats", "--metrics-url", "http://h/metrics") == 0
    assert shell.opened[-1][1]["metrics_url"] == "http://h/metrics"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["MODEL", "INFERENCES"]
    assert lines[1].split() == ["echolm", "12"]
    assert lines[-1].split() == ["echolm_answers_total", "llm=small_llm", "9"]
    assert not any("bucket" in line for line in lines)
    assert shell("stats", "--json") == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["inferences"] == {"echolm": 12}
    assert len(stats["samples"]) == 2


def test_wrong_arguments_end_with_2(shell: Shell) -> None:
    for argv in (["ask"], ["rate"], ["rate", "good"], ["ask", "x", "--max-tokens", "many"]):
        with pytest.raises(SystemExit) as raised:
            shell(*argv)
        assert raised.value.code == 2
