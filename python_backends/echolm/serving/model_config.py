"""Reads and writes ``config.pbtxt``, the configuration of a Triton model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from echolm.errors import ConfigurationError

CONFIG_FILE = "config.pbtxt"


def read(model: Path) -> Any:
    """A model's configuration without a newer Triton's fields; ConfigurationError if unreadable."""
    file, config = model / CONFIG_FILE, model_config_pb2.ModelConfig()
    try:
        return text_format.Parse(file.read_text("utf-8"), config, allow_unknown_field=True)
    except (OSError, ValueError, text_format.ParseError) as error:
        raise ConfigurationError(
            f"model {model.name}: expected a model configuration in {file}, got: {error}; "
            "correct or restore it"
        ) from error


def write(model: Path, config: Any) -> None:
    """Replace the configuration in a model's folder; its comments and unknown fields go."""
    text = text_format.MessageToString(config, as_utf8=True)
    header = "# Written by `echolm build`; engine options: python_backends/echolm/engines.\n"
    (model / CONFIG_FILE).write_text(header + text, encoding="utf-8")


def is_python(model: Path) -> bool:
    """Whether the python backend runs a model, in processes of its own."""
    return bool(read(model).backend == "python")
