"""Engines, which run an LLM: each in a file, with one interface (:mod:`~echolm.engines.base`).

An engine's package is imported only when that engine is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from echolm.engines.base import LLMEngine
from echolm.errors import ConfigurationError

ENGINES = ("openvino", "tensorrt_llm", "vllm", "dummy")
"""The engines' names, and those of their modules, each with a ``check(model_dir, options)`` and a
``create(model_dir, options)``."""


def create_engine(
    name: str, model_dir: Path | str, options: Mapping[str, Any] | None = None
) -> LLMEngine:
    """Load the model of a directory and start its engine; returns when it is ready.

    Options that are text are converted to their types. Raises ConfigurationError as
    :func:`check_engine` does, and if the model cannot be loaded.
    """
    engine: LLMEngine = _module(name).create(Path(model_dir), dict(options or {}))
    return engine


def check_engine(name: str, model_dir: Path, options: Mapping[str, Any]) -> None:
    """Check what can be known of an engine without starting it.

    Raises:
        ConfigurationError: the engine is unknown or not installed, an option is wrong, or model
            files are missing.
    """
    _module(name).check(model_dir, options)


def _module(name: str) -> Any:
    if name not in ENGINES:
        expected = ", ".join(sorted(ENGINES))
        raise ConfigurationError(f"engine: expected one of {expected}, got {name!r}")
    try:
        return import_module(f"echolm.engines.{name}")
    except ImportError as error:
        message = f"engine {name}: expected its packages to be installed, got: {error}"
        raise ConfigurationError(message) from error


__all__ = ["ENGINES", "LLMEngine", "check_engine", "create_engine"]
