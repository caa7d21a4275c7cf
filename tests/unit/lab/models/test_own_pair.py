from __future__ import annotations

from pathlib import Path

import pytest
from echolm.errors import ConfigurationError
from echolm.serving import model_config
from echolm.serving.build import built_root
from echolm.serving.serve import model_repository_root
from echolm.settings.loading import load_settings
from echolm_lab.models.own_pair import write_pair

SERVED = "http://localhost:8100/v1#Qwen/Qwen2.5-7B-Instruct"


def shipped(role: str) -> str:
    return str(model_repository_root(None) / "local" / f"{role}_llm" / "1" / "openvino")


def test_folders_of_openvino_models_are_served_as_they_are(tmp_path: Path) -> None:
    file = write_pair(shipped("small"), shipped("large"), tmp_path / "models", 8)
    small, large = load_settings(file).llms
    assert (small.name, large.name) == ("small_llm", "large_llm")
    assert small.takes_examples and not large.takes_examples
    assert 0 < small.cost < large.cost == 1
    assert (small.pool, small.capacity) == ("cpu", 8)
    assert built_root(file, "local") == file.parent
    config = model_config.read(file.parent / "local" / "small_llm")
    assert config.parameters["model_dir"].string_value == shipped("small")
    assert config.parameters["engine"].string_value == "openvino"
    assert not list((file.parent / "local").rglob("openvino_model.bin"))  # nothing is copied


def test_llms_of_other_servers_need_no_model_here(tmp_path: Path) -> None:
    file = write_pair(shipped("small"), SERVED, tmp_path / "models", 8)
    _, large = load_settings(file).llms
    assert (large.contract, large.url) == ("openai", "http://localhost:8100/v1")
    assert large.remote_model == "Qwen/Qwen2.5-7B-Instruct"
    assert {path.name for path in (file.parent / "local").iterdir()} == {"embedder", "small_llm"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("http://localhost:8100/v1", "--large: expected .*#NAME"),
        ("nowhere", "--large: expected the folder .* lacks openvino_model.xml"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_written(
    tmp_path: Path, model: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        write_pair(shipped("small"), model, tmp_path / "models", 8)
    assert not (tmp_path / "models").exists()
