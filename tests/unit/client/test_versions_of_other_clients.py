"""The versions of other people's clients that the README names are those that tests run."""

from __future__ import annotations

import re
from pathlib import Path

from echolm_lab.experiments.perf_analyzer import VERSION
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[3]
LOCKS = ("requirements.lock", "tests/other_clients/requirements.lock")
NAMES = {
    "`openai`": "openai",
    "LiteLLM": "litellm",
    "LangChain": "langchain-openai",
    "AIPerf": "aiperf",
    "GenAI-Perf": "genai-perf",
    "`tritonclient`": "tritonclient",
}


def locked(path: Path) -> dict[str, str]:
    """Versions for the Python that the README speaks of, by package."""
    requirements = map(Requirement, path.read_text().split("\n")[:-1])
    environment = {"python_full_version": "3.11.9", "python_version": "3.11"}
    return {
        one.name: str(one.specifier).removeprefix("==")
        for one in requirements
        if one.marker is None or one.marker.evaluate(environment)
    }


def test_the_readme_names_the_versions_that_run() -> None:
    versions: dict[str, str] = {}
    for path in LOCKS:
        versions.update(locked(REPOSITORY / path))
    section = (
        (REPOSITORY / "client" / "README.md").read_text().split("## Other people's clients")[1]
    )
    named = re.findall(r"^\| ([^|,]+?)[ ,][^|]*\| ([\d.]+) \|", section, re.MULTILINE)
    assert {name for name, _ in named} == {*NAMES, "`perf_analyzer`"}
    for name, version in named:
        expected = VERSION if name == "`perf_analyzer`" else versions[NAMES[name]]
        assert version == expected, name


def test_the_same_client_of_openai_is_tested_everywhere() -> None:
    ours, others = (locked(REPOSITORY / path) for path in LOCKS)
    assert ours["openai"] == others["openai"]
