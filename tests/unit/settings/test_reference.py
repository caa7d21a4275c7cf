from __future__ import annotations

import re
from pathlib import Path

import pytest
from echolm.settings import Settings
from generate_settings_reference import SECTIONS, settings_reference

FILE = Path(__file__).parents[3] / "python_backends" / "SETTINGS.md"

DESCRIPTIONS = {
    f"{name}.{key}".removeprefix("."): " ".join((field.description or "").split())
    for name, section in {"": Settings, **SECTIONS}.items()
    for key, field in section.model_fields.items()
    if name or key not in SECTIONS
}


def test_the_reference_is_current() -> None:
    assert FILE.read_text(encoding="utf-8") == settings_reference(), (
        "run scripts/generate_settings_reference.py"
    )


def test_the_reference_has_every_key() -> None:
    reference = settings_reference()
    assert len(DESCRIPTIONS) > 100
    assert {"data_dir", "retrieval.top_n", "llms.cost"} <= DESCRIPTIONS.keys()
    assert all(f"| `{name.split('.')[-1]}` |" in reference for name in DESCRIPTIONS)


@pytest.mark.parametrize("key", DESCRIPTIONS)
def test_a_description_stands_by_itself(key: str) -> None:
    description = DESCRIPTIONS[key]
    assert re.fullmatch(r"[A-Zg].{15,}\.", description), description
    assert not re.search(r"\b(likewise|above key|see above|the same as above)\b", description)
    assert "|" not in description, "it would end the table's cell"


def test_secrets_and_sections_are_shown_as_such() -> None:
    reference = settings_reference()
    assert "| `signing_key` | secret text |" in reference
    assert "## `[[llms]]`, one for each LLM" in reference
    assert "| `top_n` | integer, ≥ 1, ≤ 1024 | `16` |" in reference
