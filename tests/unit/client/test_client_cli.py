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
from echolm_client.cli import answers
from echolm_client.cli.console import guarded

PAGE = """\
nv_inference_count{model="echolm",version="1"} 12
echolm_answers_total{llm="small_llm"} 9
echolm_seconds_bucket{le="1"} 4
"""


def text(value: str) -> np.ndarray[Any, Any]:
    return np.array([[value.encode()]], dtype=object)


def scripted(call: Call) -> Iterator[Outputs]:
    sent = {t.name: t.array[0].tolist() for t in call.inputs}
    if call.model == "feedback":
        yield {"accepted": np.array([[sent["feedback_token"] != [b"old"]]])}
        return
    asked = sent["text_input"][0].decode()
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
            "feedback_token": text({"no token": "", "other": "tok2"}.get(asked, "tok")),
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
        return guarded(lambda: int(args.func(args)))

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


def test_rate_takes_the_previous_answer_and_tokens_of_standard_input(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("ask", "hi")
    shell("ask", "other")
    assert shell("rate", "1", "--token", "previous") == 0
    assert shell.sent()["feedback_token"] == [b"tok"]
    monkeypatch.setattr("sys.stdin", io.StringIO("piped\n"))
    assert shell("rate", "1", "--token", "-") == 0
    assert shell.sent()["feedback_token"] == [b"piped"]
    assert shell("rate", "1", "--token", "-") == 2


@pytest.mark.parametrize(
    ("words", "better", "over"),
    [
        (["last"], b"tok2", b"tok"),
        (["previous"], b"tok", b"tok2"),
        (["last", "previous"], b"tok2", b"tok"),
        (["mine", "last"], b"mine", b"tok2"),
        (["mine", "other"], b"mine", b"other"),
        (["-", "-"], b"piped1", b"piped2"),
        (["-", "last"], b"piped1", b"tok2"),
    ],
)
def test_prefer_names_two_answers(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: list[str], better: bytes, over: bytes
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("piped1\n piped2 \n"))
    for text in ("an older one", "hi", "other"):
        assert shell("ask", text, "--url", "gpu1:9001") == 0
    assert shell("prefer", *words, "--tenant", "t") == 0
    assert shell.sent() == {
        "feedback_token": [better],
        "preferred_over": [over],
        "tenant": [b"t"],
    }
    remembered = not {"last", "previous"}.isdisjoint(words)
    assert shell.opened[-1][0] == ("gpu1:9001" if remembered else "localhost:8001")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mine"], "expected two answers"),
        (["mine", "mine"], "the same one twice"),
        (["last"], "got no previous answer"),
        (["-", "last"], "expected a line with a feedback token"),
    ],
)
def test_prefer_without_two_answers_is_a_usage_error(
    shell: Shell,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    shell("ask", "hi")
    assert shell("prefer", *words) == 2
    assert says in capsys.readouterr().err


def test_a_preference_that_is_not_accepted_is_a_failure(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell("prefer", "old", "mine") == 1
    assert "did not accept" in capsys.readouterr().err


def test_answers_of_two_servers_are_compared_only_by_a_server_that_is_named(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    shell("ask", "hi", "--url", "gpu1")
    shell("ask", "other", "--url", "gpu2")
    assert shell("prefer", "last") == 2
    assert "expected answers of one server, got gpu1 and gpu2" in capsys.readouterr().err
    assert shell("prefer", "last", "--url", "gpu3") == 0
    assert shell.opened[-1][0] == "gpu3"


def test_rate_without_a_last_answer_is_a_usage_error(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell("rate", "1") == 2
    assert "got no last answer" in capsys.readouterr().err
    path = answers.path()
    path.parent.mkdir(parents=True)
    path.write_text("{ broken")
    assert shell("rate", "1") == 2


def test_the_last_answer_is_private_and_holds_no_text(shell: Shell, tmp_path: Path) -> None:
    shell("ask", "a secret")
    path = tmp_path / "cache" / "echolm" / "last_answers.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "secret" not in path.read_text()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_answer_without_a_token_leaves_the_last_one(shell: Shell) -> None:
    shell("ask", "hi")
    shell("ask", "no token")
    assert answers.load() == [answers.RememberedAnswer("localhost:8001", "tok")]


def test_a_cache_that_cannot_be_written_is_only_reported(
    shell: Shell, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file, not a directory")
    assert shell("ask", "hi") == 0
    assert "not remembered" in capsys.readouterr().err


def test_a_relative_cache_directory_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert answers.path() == Path.home() / ".cache" / "echolm" / "last_answers.json"


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


def test_figures_are_whole_and_names_give_way(
    shell: Shell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "echolm_" + "n" * 90
    page = f'{name} 12345678901\necholm_seconds_sum{{llm="a"}} 12345.6789\n'
    shell.transport = FakeTransport(scripted, PAGE + page)
    assert shell("stats") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["echolm_seconds_sum", "llm=a", "12345.6789"]
    assert f"{name}  12345678901" in lines
    monkeypatch.setattr("echolm_client.cli.stats.terminal_width", lambda: 80)
    assert shell("stats") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == 80
    assert any("nnn…  12345678901" in line for line in lines)


def test_wrong_arguments_end_with_2(shell: Shell) -> None:
    for argv in (
        ["ask"],
        ["rate"],
        ["rate", "good"],
        ["prefer"],
        ["ask", "x", "--max-tokens", "many"],
        ["ask", "x", "--timeout", "0"],
        ["stats", "--timeout", "soon"],
    ):
        with pytest.raises(SystemExit) as raised:
            shell(*argv)
        assert raised.value.code == 2
