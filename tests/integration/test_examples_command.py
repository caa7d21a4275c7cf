"""``echolm examples`` on a data directory with a real Milvus Lite, no server running."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from echolm.cli.examples.data import ExampleData, open_examples
from echolm.cli.main import main
from echolm.embedding import EmbedderSpec, minilm
from echolm.examples.events import CHANGE, USAGE, change, usage
from echolm.serving.attach import attached
from echolm.settings import Settings
from echolm.settings.loading import load_settings
from echolm.store.base import Example, scope_key
from echolm.store.milvus import MilvusStore

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder")
    minilm.build(folder)
    return folder


@pytest.fixture
def settings(tmp_path: Path, embedder: Path) -> Settings:
    defaults = load_settings()
    changes = {
        "data_dir": tmp_path / "data",
        "embedding": defaults.embedding.model_copy(update={"model_dir": embedder}),
    }
    return defaults.model_copy(update=changes)


@pytest.fixture
def run(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    monkeypatch.setenv("ECHOLM_EMBEDDING__MODEL_DIR", str(settings.embedding.model_dir))

    def command(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["examples", "--data-dir", str(settings.data_dir), *words])
        return status, capsys.readouterr().out

    return command


def example(id: int, tenant: str = "t", request: str = "") -> Example:
    request = request or f"request {id}"
    scope = scope_key(tenant, "")
    return Example(id, request, f"response {id}", tenant, scope, "large_llm", 0.75, 10, 10)


def store(data: ExampleData, *examples: Example) -> None:
    vectors = np.zeros((len(examples), 384), np.float32)
    vectors[:, 0] = 1.0
    data.store.upsert(examples, vectors)
    data.log.append(CHANGE, change(examples))


def test_what_is_stored_can_be_seen(settings: Settings, run: Run) -> None:
    with open_examples(settings) as data:
        store(data, *[example(i) for i in range(1, 31)])
        data.log.append(USAGE, usage({7: (3, 2.5, 0.1)}))
    status, out = run("stats", "--json")
    assert status == 0
    figures = json.loads(out)
    assert (figures["stored"], figures["with_statistics"], figures["pending"]) == (30, 30, 0)
    status, out = run("top", "-n", "2", "--json")
    first = json.loads(out.splitlines()[0])
    assert (first["id"], first["uses"], first["request"]) == (7, 3, "request 7")
    status, out = run("show", "7")
    assert (status, json.loads(out)["response"]) == (0, "response 7")
    assert json.loads(out)["statistics"]["uses"] == 3
    assert run("show", "7", "99")[0] == 1
    assert "request 7" in run("top")[1]


def test_deleted_examples_are_gone_for_good_and_that_is_logged(
    settings: Settings, run: Run
) -> None:
    secret = example(3, request="tell nobody 5f1d7e")
    with open_examples(settings) as data:
        store(data, example(1), example(2, "other"), secret, example(4))
        waiting = example(5, "other", request="5f1d7e, not stored yet")
        data.write_ahead_log.append([(waiting, np.zeros(384, np.float32))])
    assert run("delete", "--tenant", "other", "--yes") == (0, "deleted 2 examples\n")
    assert run("delete", "--match", "5f1d7e", "--yes") == (0, "deleted 1 examples\n")
    assert run("delete", "--id", "4", "--match", "no match", "--yes") == (1, "")
    assert run("delete", "--id", "1", "--yes")[0] == 0
    with open_examples(settings) as data:
        assert [e.id for batch in data.store.scan() for e, _ in batch] == [4]
        assert len(data.write_ahead_log) == 0
        assert data.statistics.removals() == {"deleted": 3}
    for file in settings.data_dir.rglob("*"):
        if file.is_file():
            assert b"5f1d7e" not in file.read_bytes(), file


def test_a_deletion_must_be_asked_for(settings: Settings, run: Run) -> None:
    with open_examples(settings) as data:
        store(data, example(1))
    assert run("delete")[0] == 2
    assert run("delete", "--match", "[")[0] == 2
    with open_examples(settings) as data:
        assert data.store.count() == 1


def test_examples_move_from_one_directory_to_another(
    settings: Settings, run: Run, tmp_path: Path
) -> None:
    with open_examples(settings) as data:
        store(data, *[example(i, "a" if i % 2 else "b") for i in range(1, 1_202)])
    file = tmp_path / "examples.jsonl"
    assert run("export", str(file))[0] == 0
    assert len(file.read_text(encoding="utf-8").splitlines()) == 1_202
    assert run("delete", "--tenant", "a", "--yes")[0] == 0
    assert run("import", str(file))[0] == 0
    with open_examples(settings) as data:
        assert data.store.count() == data.statistics.totals()[0] == 1_201
        [(moved, vector)] = data.store.get([1_201])
    assert moved == example(1_201, "a")
    assert vector[0] == 1.0
    assert run("export", str(file), "--tenant", "b")[0] == 0
    assert len(file.read_text(encoding="utf-8").splitlines()) == 601


PAIRS = [
    {"request": "list all files", "response": "ls -a"},
    {"prompt": "List all files.", "completion": "ls -a"},
    {"question": "list all files", "answer": "find ."},
    {"request": "count the lines of a.txt", "response": "wc -l a.txt", "tenant": "b"},
    {"request": "my key", "response": "AKIAIOSFODNN7EXAMPLE"},
    {"request": "show the date", "response": None},
    {
        "messages": [
            {"role": "system", "content": "Answer in shell."},
            {"role": "user", "content": "list all files"},
            {"role": "assistant", "content": "ls -a"},
        ]
    },
]


def test_pairs_become_examples_once_and_bad_lines_are_told(
    settings: Settings, run: Run, tmp_path: Path
) -> None:
    # Long requests that begin alike, which have one embedding; more than a batch of lines.
    long = [{"input": "word " * 300 + str(n), "output": f"answer {n}"} for n in range(300)]
    lines = [json.dumps(pair) for pair in (*PAIRS, *long, *long[:5])]
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join([*lines, "no json", ""]), encoding="utf-8")
    status, out = run("import", str(file), "--json")
    expected = {
        "in": 303,
        "replaced": 0,
        "already_there": 7,
        "no_better": 1,
        "refused": 3,
        "refusals": {"invalid": 2, "secret": 1},
        "dry_run": False,
    }
    assert (status, json.loads(out)) == (1, expected)
    assert run("check")[0] == 0
    again = {**expected, "in": 0, "already_there": 310}
    assert json.loads(run("import", str(file), "--json", "--dry-run")[1]) == {
        **again,
        "dry_run": True,
    }
    assert json.loads(run("import", str(file), "--json")[1]) == again
    with open_examples(settings) as data:
        assert data.store.count() == data.statistics.totals()[0] == 303
        stored = [e for batch in data.store.scan() for e, _ in batch]
    assert {e.scope for e in stored} == {
        scope_key(*scope) for scope in (("public", ""), ("b", ""), ("public", "Answer in shell."))
    }


def test_a_row_with_the_id_of_another_tenant_s_example_leaves_that_alone(
    settings: Settings, run: Run, tmp_path: Path
) -> None:
    with open_examples(settings) as data:
        store(data, example(1, "a"), example(2, "a"))
    file = tmp_path / "examples.jsonl"
    run("export", str(file))
    header, first, second = file.read_text(encoding="utf-8").splitlines()
    stolen = {**json.loads(first), "tenant": "b", "scope": scope_key("b", ""), "response": "mine"}
    bad = {**json.loads(second), "quality": 9}
    file.write_text("\n".join([header, json.dumps(bad), json.dumps(stolen), second]))
    assert run("import", str(file)) == (
        1,
        "in             1, 0 of them in place of another answer\n"
        "already there  1, 0 of them with an answer no worse\n"
        "refused        1: 1 invalid\n",
    )
    with open_examples(settings) as data:
        stored = {e.id: e for batch in data.store.scan() for e, _ in batch}
    assert (stored.pop(1), stored.pop(2)) == (example(1, "a"), example(2, "a"))
    assert [(e.tenant, e.response) for e in stored.values()] == [("b", "mine")]
    assert run("check")[0] == 0
    assert run("import", str(file), "--tenant", "c")[0] == 2


def test_examples_of_another_embedding_model_are_embedded_anew(
    settings: Settings, run: Run
) -> None:
    with attached(settings) as found:
        other = found.retrieval.model_copy(update={"collection": "old"})
        old = MilvusStore(other, "another-model", 8)
        vectors = np.eye(8, dtype=np.float32)[:2]
        old.upsert([example(1, request="list all files"), example(2)], vectors)
        old.close()
    assert run("reembed", "--from", "old")[0] == 0
    with open_examples(settings) as data:
        [(_, vector)] = data.store.get([1])
        assert vector.shape == (EmbedderSpec.read(settings.embedding.model_dir).dimension,)
        assert np.linalg.norm(vector) == pytest.approx(1.0, abs=0.01)
        assert data.statistics.totals()[0] == 2
    assert run("reembed", "--from", "nothing")[0] == 2
    assert run("reembed", "--from", settings.retrieval.collection)[0] == 2


def test_check_finds_what_differs_and_mends_it_when_told_to(settings: Settings, run: Run) -> None:
    with open_examples(settings) as data:
        store(data, example(1), example(2))
        data.store.delete([1])
        data.store.upsert([example(3)], np.ones((1, 384), np.float32))
        store(data, example(4, request="Request 2."))
        data.log.append(USAGE, usage({4: (3, 2.5, 0.1)}))
    for _ in range(2):
        status, out = run("check")
        assert status == 1
        assert out.splitlines() == [
            "examples                 3",
            "damaged                  0",
            "without statistics       1",
            "statistics alone         1",
            "requests stored twice    1",
            "half replaced            0",
            "not stored yet           0",
        ]
    status, out = run("check", "--repair")
    assert status == 0
    assert out.count("1 (mended)") == 3
    with open_examples(settings) as data:
        assert data.statistics.known([1, 2, 3, 4]) == {2, 3}
        assert [e.id for batch in data.store.scan() for e, _ in batch] == [2, 3]
        assert data.statistics.removals() == {"not_in_store": 1, "duplicate": 1}
        kept = data.statistics.get(2)
        assert kept is not None and kept.uses == 3
    status, out = run("check")
    assert status == 0
    assert "mended" not in out
    assert run("check", "--repair")[0] == 0


@pytest.mark.parametrize(
    "tenant", ['"; id > 0 or tenant == "', "back\\slash\\", "日本 😀", "%s{a}"]
)
def test_a_tenant_s_examples_are_found_by_whatever_name_it_has(
    settings: Settings, run: Run, tmp_path: Path, tenant: str
) -> None:
    with open_examples(settings) as data:
        store(data, example(1), example(2, tenant), example(3, tenant + "x"))
    file = tmp_path / "examples.jsonl"
    assert run("export", str(file), "--tenant", tenant)[0] == 0
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines[1:]] == [2]
    assert run("delete", "--tenant", tenant, "--yes") == (0, "deleted 1 examples\n")
    # What is told of nothing is no success.
    assert run("delete", "--tenant", tenant, "--yes") == (1, "")
    assert run("export", str(file), "--tenant", tenant) == (1, "")
    with open_examples(settings) as data:
        assert [e.id for batch in data.store.scan() for e, _ in batch] == [1, 3]


def test_a_damaged_row_stops_no_command_and_repair_removes_it(
    settings: Settings, run: Run, tmp_path: Path
) -> None:
    with open_examples(settings) as data:
        store(data, example(1), example(2))
        insert_damaged(data.store)
    assert run("export", str(tmp_path / "all.jsonl"))[0] == 0
    assert run("top")[0] == 0
    status, out = run("check")
    assert (status, out.splitlines()[1]) == (1, "damaged                  3")
    assert run("delete", "--id", "8", "--yes") == (0, "deleted 1 examples\n")
    assert run("delete", "--match", "request 2", "--yes") == (1, "deleted 1 examples\n")
    status, out = run("check", "--repair")
    assert (status, out.splitlines()[1]) == (0, "damaged                  2 (mended)")
    assert run("check")[0] == 0
    with open_examples(settings) as data:
        assert data.store.count() == data.statistics.totals()[0] == 1


def insert_damaged(store: MilvusStore) -> None:
    """Rows as another program may write them."""
    row = {**vars(example(7)), "num_bytes": 1, "embedding": np.ones(384, np.float32)}
    damages: list[dict[str, Any]] = [
        {"id": 7, "value": math.nan},
        {"id": 8, "quality": math.inf},
        {"id": -9},
    ]
    with store._calling("insert") as client:
        client.insert(store._collection, [{**row, **damage} for damage in damages])
