"""Reading ``echolm.toml`` and the environment into one validated object.

Every process reads it once, at start, through :func:`load_settings`; no other module
looks at the environment. Order of precedence: environment variables
(``ECHOLM_RETRIEVAL__TOP_N=64``), the file named by ``ECHOLM_CONFIG``, the defaults of the schema.
An unknown key or a bad value stops the start.

A variable that ends with ``_FILE`` names a file with the value, which is how containers get
their secrets (``ECHOLM_FEEDBACK__SIGNING_KEY_FILE=/run/secrets/signing_key``).
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import (
    ValidationError,
)
from pydantic_settings import (
    SettingsError,
)

from echolm.errors import ConfigurationError
from echolm.settings.environment import ENV_FILE_SUFFIX, ENV_PREFIX
from echolm.settings.schema import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ENV_CONFIG = "ECHOLM_CONFIG"

_PASSWORD = re.compile(r"://[^/\s]*@")


def load_settings(path: Path | str | None = None) -> Settings:
    """Read and validate the configuration.

    Args:
        path: an ``echolm.toml``; None takes ``ECHOLM_CONFIG``, and without that the defaults.
            Relative paths in the file are relative to the file.

    Raises:
        ConfigurationError: the file is missing or a key or value in it, or in the
            environment, is wrong.
    """
    path = path or os.environ.get(ENV_CONFIG) or None
    values: dict[str, Any] = {}
    if path is not None:
        path = Path(path)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(
                f"configuration {path}: expected a readable file, got: {error.strerror}; "
                f"give --config or set {ENV_CONFIG}"
            ) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"configuration {path}: expected TOML, got: {error}"
            ) from error
        _anchor_paths(values, path.parent)
    _refuse_unknown_environment()
    try:
        return Settings(**values)
    except SettingsError as error:  # a list or section in the environment that is not JSON
        raise ConfigurationError(
            f"environment variables {ENV_PREFIX}…: {error}; write lists and sections as JSON"
        ) from error
    except ValidationError as error:
        raise ConfigurationError(_explain(error, path)) from error


def _anchor_paths(values: dict[str, Any], base: Path) -> None:
    """Make the file's relative paths relative to the file, wherever a process is started."""

    def anchor(section: Any, key: str) -> None:
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(value, str) and value and "://" not in value:
            section[key] = str((base / value).resolve())

    anchor(values, "data_dir")
    anchor(values, "event_log")
    anchor(values.get("embedding"), "model_dir")
    judging = values.get("judging")
    anchor(judging, "prompt")
    if isinstance(judging, dict) and ".py:" in str(judging.get("grader")):
        anchor(judging, "grader")
    anchor(values.get("routing"), "load_table")
    llms = values.get("llms")
    for llm in llms if isinstance(llms, list) else ():
        anchor(llm, "tokenizer")


def _refuse_unknown_environment() -> None:
    known = {field.upper() for field in Settings.model_fields}
    for name in os.environ:
        if not name.startswith(ENV_PREFIX) or name == ENV_CONFIG:
            continue
        section = name[len(ENV_PREFIX) :].removesuffix(ENV_FILE_SUFFIX).split("__")[0]
        if section not in known:
            raise ConfigurationError(
                f"environment variable {name}: expected ECHOLM_<SECTION>__<KEY> with a section "
                f"among {sorted(known)}, got {section!r}; correct or unset it"
            )


def _explain(error: ValidationError, path: Path | str | None) -> str:
    lines = [f"configuration {path or '(environment)'} is not valid:"]
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"]) or "(file)"
        shown = _PASSWORD.sub("://***@", repr(problem.get("input")))
        got = "" if problem["type"] == "missing" else f", got {shown:.80}"
        lines.append(f"  {key}: {problem['msg']}{got}")
    return "\n".join(lines)
