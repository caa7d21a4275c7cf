"""``echolm learn-from`` beside a real Triton with a real Milvus Lite and LLMs that answer at once.

The small LLM echoes its prompt, so its answer is right if an example in it is: never without, and
nearly always with the examples of a log whose requests are much alike.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dummy_llm import REPOSITORY, core_with, dummy_llm
from echolm.cli.main import main
from echolm.serving import Endpoints, running_server
from echolm.settings import JudgingSettings, LLMSettings, Settings
from learn_from_grader import answer, request, write_log
from triton_calls import Caller, text

pytestmark = pytest.mark.timeout(240)

REQUESTS, SAMPLE = 240, 60
GRADER = Path(__file__).parents[1] / "learn_from_grader.py"


@pytest.fixture(scope="module")
def settings(server_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    llms = (
        LLMSettings(chat_template="echolm", name="small_llm", cost=0.1, takes_examples=True),
        LLMSettings(chat_template="echolm", name="large_llm", cost=1.0, takes_examples=False),
    )
    judging = JudgingSettings(kind="grader", grader=f"{GRADER}:grade")
    data_dir = tmp_path_factory.mktemp("learn_from") / "data"
    return server_settings.model_copy(
        update={"data_dir": data_dir, "llms": llms, "judging": judging}
    )


@pytest.fixture(scope="module")
def endpoints(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(REPOSITORY / "local" / "embedder", models / "embedder")
    dummy_llm("small_llm", {"echo_prompt": "true"}, models)
    dummy_llm("large_llm", {"text": "large says so"}, models)
    options = core_with(models)
    with running_server(settings, options) as endpoints:
        yield endpoints


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    write_log(path, REQUESTS)
    return path


def events(settings: Settings) -> list[tuple[str, dict[str, Any]]]:
    with sqlite3.connect(settings.data_dir / "events.sqlite") as db:
        rows = db.execute("SELECT kind, body FROM events ORDER BY sequence").fetchall()
    return [(kind, json.loads(body)) for kind, body in rows]


def learn(
    capsys: pytest.CaptureFixture[str], settings: Settings, log: Path, *options: str
) -> dict[str, Any]:
    command = ["learn-from", str(log), "--data-dir", str(settings.data_dir), "--json", "--yes"]
    assert main([*command, "--sample", str(SAMPLE), *options]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_a_log_is_stored_replayed_and_learnt_once(
    capsys: pytest.CaptureFixture[str], settings: Settings, endpoints: Endpoints, log: Path
) -> None:
    report = learn(capsys, settings, log)
    read = report["log"]
    assert (read["format"], read["records"], read["usable"]) == ("openai", REQUESTS + 2, REQUESTS)
    assert read["skipped"] == {
        "conversation": {"count": 1, "first": "log.jsonl:4"},
        "not JSON": {"count": 1, "first": "log.jsonl:6"},
    }
    assert report["stored"] == {"stored": REQUESTS}
    assert report["request_statistics"] == {"version": 1, "count": REQUESTS}

    replay = report["replay"]
    judged = replay["now"]["judged"]
    # With examples and without; now and then none are tried.
    assert 1.8 * SAMPLE < judged <= 2 * SAMPLE and len(replay["now"]) == 1
    assert replay["stopped"] == ""
    logged = events(settings)
    ratings = [body for kind, body in logged if kind == "rating"]
    assert {body["source"] for body in ratings} == {"judge:grader"}
    small = [body for body in ratings if body["llm"] == "small_llm"]
    assert len(small) == judged
    assert {body["score"] for body in small if not body["example_ids"]} == {0.0}
    with_examples = [body["score"] for body in small if body["example_ids"]]
    assert sum(with_examples) > 0.8 * SAMPLE
    assert all(body["score"] == 1.0 for body in ratings if body["llm"] == "large_llm")

    expected = report["expected"]
    here = expected["at_cost_weight"]
    assert expected["requests"] == SAMPLE
    assert here["offload"]["value"] > 0.8 and here["quality"]["value"] > 0.45
    assert here["cost"]["value"] == pytest.approx(1.0 - 0.9 * here["offload"]["value"])
    assert [row["cost_weight"] for row in expected["by_cost_weight"]][:2] == [0.0, 0.01]

    # The same again: nothing is stored, asked or learnt any more, and the report is the same.
    again = learn(capsys, settings, log)
    assert again["replay"]["now"] == {} and again["stored"] == report["stored"]
    assert again["expected"] == expected and again["request_statistics"] is None
    assert len(events(settings)) == len(logged)


def test_what_was_learnt_serves_requests(
    endpoints: Endpoints, settings: Settings, log: Path
) -> None:
    caller = Caller(endpoints)
    asked = request("printers", 9_999)
    answered = caller.ask(asked, llm="small_llm", system_prompt="Be kind.", max_tokens=400)
    assert answer("printers") in text(answered, "text_output")
    # Another system prompt has no examples.
    answered = caller.ask(asked, llm="small_llm", system_prompt="Be rude.", max_tokens=400)
    assert answer("printers") not in text(answered, "text_output")


def test_a_log_that_has_grown_costs_what_is_new(
    capsys: pytest.CaptureFixture[str], settings: Settings, endpoints: Endpoints, log: Path
) -> None:
    grown = log.with_name("grown.jsonl")
    write_log(grown, REQUESTS + 24)
    report = learn(capsys, settings, grown)
    assert report["stored"] == {"stored": 24, "known already": REQUESTS}
    assert 0 < report["replay"]["now"]["judged"] < SAMPLE


def test_the_budget_ends_it_cleanly(
    capsys: pytest.CaptureFixture[str], settings: Settings, endpoints: Endpoints, log: Path
) -> None:
    other = log.with_name("other.jsonl")
    other.write_text(log.read_text().replace("my number", "her number"))
    report = learn(capsys, settings, other, "--budget", "3000")
    replay = report["replay"]
    assert replay["stopped"] == "budget"
    assert 0 < replay["cost"] <= 3000
    assert 0 < replay["now"]["judged"] < 2 * SAMPLE
    # With more it goes on; what was spent counts.
    priced = ["--price", "small_llm=1:2", "--price", "large_llm=10:20", "--budget", "5"]
    report = learn(capsys, settings, other, *priced)
    assert report["replay"]["stopped"] == "" and report["replay"]["unit"] == "money"
    assert report["expected"]["at_cost_weight"]["cost_of_reference"]["value"] > 0


def test_without_a_server_the_llms_are_missed_before_anything_is_stored(
    capsys: pytest.CaptureFixture[str], settings: Settings, log: Path, tmp_path: Path
) -> None:
    config = tmp_path / "echolm.toml"
    config.write_text(
        f'grpc_url = "localhost:9"\ndata_dir = "{tmp_path / "data"}"\n'
        f'[embedding]\nmodel_dir = "{settings.embedding.model_dir}"\n'
        f'[judging]\nkind = "grader"\ngrader = "{GRADER}:grade"\n'
    )
    command = ["learn-from", str(log), "--config", str(config), "--yes", "--json"]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "small_llm: expected an answer at localhost:9" in error and "--no-replay" in error
    assert main([*command, "--no-replay"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["stored"] == {"stored": REQUESTS} and "replay" not in report
