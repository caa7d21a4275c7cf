"""``judging.grader`` names a file: a function that is not installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from echolm.errors import ConfigurationError
from echolm.judges.grader import GraderJudge, absolute_grader, load_grader
from echolm.settings import JudgingSettings
from echolm.settings.loading import load_settings
from echolm_lab.tasks import Workload

ROOT = Path(__file__).resolve().parents[3]
WORKLOAD = f"{ROOT}/scripts/echolm_lab/tasks/judging.py:grade"
GRADER = """
from __future__ import annotations
from dataclasses import dataclass
from {module} import FULL

@dataclass
class Length:
    text: str

def grade(request: str, answer: str, reference: str | None) -> float:
    return len(Length(answer).text) / FULL

LIMIT = 3
"""


@pytest.fixture(autouse=True)
def imports() -> Iterator[None]:
    """What a grader has brought onto the path goes again."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def written(folder: Path, module: str = "house_rules") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "house_rules.py").write_text("FULL = 10\n")
    file = folder / "my grader.py"
    file.write_text(GRADER.format(module=module))
    return file


async def test_a_file_is_run_as_a_script_is_with_its_folder_on_the_path(tmp_path: Path) -> None:
    judge = GraderJudge(load_grader(f"{written(tmp_path)}:grade"))
    assert (await judge.judge("request", "12345", None)).score == 0.5
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize("module", [".house_rules", "rules.of.house_rules"])
def test_a_file_of_a_package_imports_what_the_package_imports(tmp_path: Path, module: str) -> None:
    file = written(tmp_path / "rules" / "of", module)
    for folder in (file.parent, file.parent.parent):
        (folder / "__init__.py").touch()
    assert load_grader(f"{file}:grade")("request", "12345", None) == 0.5
    assert str(tmp_path) in sys.path
    assert str(file.parent) not in sys.path


def test_a_module_of_the_same_name_keeps_its_place(tmp_path: Path) -> None:
    import json

    file = written(tmp_path).rename(tmp_path / "json.py")
    assert load_grader(f"{file}:grade")("request", "12345", None) == 0.5
    assert sys.modules["json"] is json


async def test_the_workloads_grader_knows_the_right_answer() -> None:
    item, other = Workload(seed=0).stream(2, seed=5)
    judge = GraderJudge(load_grader(WORKLOAD))
    assert (await judge.judge(item.text, item.answer, None)).score == 1.0
    assert (await judge.judge(item.text, other.answer, None)).score == 0.0
    with pytest.raises(ValueError, match="request of the demo workload"):
        await judge.judge("tell me a joke", item.answer, None)


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        (GRADER, "no_such_function", r"has no attribute 'no_such_function'"),
        (GRADER, "LIMIT", r"expected a function, got .*LIMIT', a int"),
        ("import no_such_package", "grade", "No module named 'no_such_package'"),
        ("def grade(", "grade", "was never closed"),
    ],
)
def test_a_file_without_the_function_stops_the_start(
    tmp_path: Path, text: str, function: str, message: str
) -> None:
    file = written(tmp_path)
    file.write_text(text.format(module="house_rules"))
    with pytest.raises(ConfigurationError, match=rf"judging\.grader: .*{message}"):
        load_grader(f"{file}:{function}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "none.py"
    with pytest.raises(ConfigurationError, match=r"judging\.grader: expected a file, got .*none"):
        load_grader(f"{file}:grade")


def test_a_relative_file_is_relative_to_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "echolm.toml"
    for grader, expected in (
        ("graders/mine.py:grade", f"{tmp_path}/graders/mine.py:grade"),
        ("/srv/mine.py:grade", "/srv/mine.py:grade"),
        ("my.module:grade", "my.module:grade"),
    ):
        config.write_text(f"[judging]\nkind = 'grader'\ngrader = '{grader}'\n")
        assert load_settings(config).judging.grader == expected


def test_without_a_file_it_is_relative_to_where_the_server_is_started() -> None:
    given = JudgingSettings(kind="grader", grader="mine.py:grade").grader
    assert absolute_grader(given) == f"{Path.cwd()}/mine.py:grade"
    assert absolute_grader("my.module:grade") == "my.module:grade"
