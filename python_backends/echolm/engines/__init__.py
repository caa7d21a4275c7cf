"""Engines, which run an LLM: each in a file, with one interface (:mod:`~echolm.engines.base`).

An engine's package is imported only when that engine is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from echolm.engines.base import LLMEngine
from echolm.errors import ConfigurationError

ENGINES: Mapping[str, str] = {
    "openvino": "echolm.engines.openvino:create",
    "tensorrt_llm": "echolm.engines.tensorrt_llm:create",
    "vllm": "echolm.engines.vllm:create",
    "dummy": "echolm.engines.dummy:create",
}
"""Where each engine's ``create(model_dir, options)`` is, by the engine's name."""


def create_engine(
    name: str, model_dir: Path | str, options: Mapping[str, Any] | None = None
) -> LLMEngine:
    """Load a model and start its engine; returns when it is ready.

    Args:
        name: one of :data:`ENGINES`.
        model_dir: the model's files.
        options: options of the engine; text is converted to their types.

    Raises:
        ConfigurationError: the engine is unknown or not installed, an option is wrong, or
            model files are missing.
    """
    try:
        factory = ENGINES[name]
    except KeyError:
        raise ConfigurationError(
            f"engine: expected one of {', '.join(sorted(ENGINES))}, got {name!r}"
        ) from None
    module, _, attribute = factory.partition(":")
    try:
        create: Callable[[Path, Mapping[str, Any]], LLMEngine] = getattr(
            import_module(module), attribute
        )
    except ImportError as error:
        raise ConfigurationError(
            f"engine {name}: expected its packages to be installed, got: {error}"
        ) from error
    return create(Path(model_dir), dict(options or {}))


__all__ = ["ENGINES", "LLMEngine", "create_engine"]
