"""LLM models that answer at once, for tests of what stands around them."""

from __future__ import annotations

import shutil
from pathlib import Path

from echolm.serving import model_config
from echolm.serving.serve import ServeOptions
from google.protobuf import text_format

REPOSITORY = Path(__file__).resolve().parents[1] / "model_repository"


def core_with(models: Path) -> ServeOptions:
    """Serve the core models and those of a folder, on free ports."""
    return ServeOptions(
        profile=None,
        model_repositories=(REPOSITORY / "core", models),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
    )


def dummy_llm(name: str, options: dict[str, str], into: Path) -> None:
    """A copy of the profile's LLM whose engine answers at once."""
    source = REPOSITORY / "local" / "small_llm"
    (into / name / "1").mkdir(parents=True)
    shutil.copy(source / "1" / "model.py", into / name / "1" / "model.py")
    config = model_config.read(source)
    config.parameters.clear()
    for key, value in {"engine": "dummy", **options}.items():
        config.parameters[key].string_value = value
    (into / name / "config.pbtxt").write_text(text_format.MessageToString(config))
