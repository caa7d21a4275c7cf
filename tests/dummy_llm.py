"""LLM models that answer at once, for tests of what stands around them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1] / "model_repository"


def dummy_llm(name: str, options: dict[str, str], into: Path) -> None:
    """A copy of the profile's LLM whose engine answers at once."""
    source = REPOSITORY / "local" / "small_llm"
    (into / name / "1").mkdir(parents=True)
    shutil.copy(source / "1" / "model.py", into / name / "1" / "model.py")
    config = re.sub(r"(?m)^parameters .*\n", "", (source / "config.pbtxt").read_text())
    parameters = {"engine": "dummy", **options}
    config += "".join(
        f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'
        for key, value in parameters.items()
    )
    (into / name / "config.pbtxt").write_text(config)
