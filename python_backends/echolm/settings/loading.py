"""Reading ``echolm.toml`` and the environment into one validated object.

Every process reads them once, at start; no other module looks at the environment. Environment
variables override the file, which overrides the defaults of the schema.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError

from echolm.errors import ConfigurationError
from echolm.settings.environment import ENV_CONFIG, ENV_PREFIX, check_names
from echolm.settings.schema import Settings
from echolm.settings.sections import BUILT_IN_CHAT_TEMPLATES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PASSWORD = re.compile(r"://[^/\s]*@")
_SECRET = re.compile(r"key|token$|secret|password", re.IGNORECASE)
"""In names of settings whose values no message shows, misspelt ones included."""

RENAMED_KEYS = {
    "examples.max_bytes": "examples.max_stored_bytes",
    "examples.max_examples": "examples.max_stored",
    "examples.max_exchange_chars": "examples.max_interaction_chars",
    "examples.tidy_interval_s": "examples.maintenance_interval_s",
    "llms.prompt_template": "llms.chat_template",
    "judging.max_load": "judging.max_in_flight_llm_requests",
    "judging.max_verdict_tokens": "judging.max_judgement_tokens",
    "replay.max_load": "replay.max_in_flight_llm_requests",
    "retrieval.adaptive_utility_threshold": "retrieval.adaptive_num_examples",
    "retrieval.replicas": "retrieval.milvus_replicas",
    "retrieval.utility_threshold_exploration": "retrieval.num_examples_exploration",
    "routing.exchange_rate": "routing.cost_weight",
    "routing.load_board": "routing.load_table",
}
"""Present names of keys by their former ones, for the message to a file that is older."""

REMOVED_KEYS = {
    "retrieval.adaptive_threshold": "see retrieval.adaptive_num_examples",
    "retrieval.diversity": "examples that agree are evidence",
    "retrieval.relative_similarity": "how many examples help is learnt",
    "retrieval.threshold": "how many examples help is learnt",
    "retrieval.threshold_exploration": "see retrieval.num_examples_exploration",
    "retrieval.utility_threshold": "how many examples help is learnt",
    "retrieval.utility_discount": "time forgets, see retrieval.utility_half_life_h",
    "routing.discount": "time forgets, see routing.half_life_h",
    "routing.fit_ceiling": "what similarity is relevant is measured",
    "routing.noise": "how far ratings scatter is learnt",
    "routing.projection_dim": "the principal components of the requests are measured",
    "routing.similarity_saturation": "what similarity is relevant is measured",
}
"""Keys that have no present form, and why, for the message to a file that is older."""


def load_settings(path: Path | str | None = None) -> Settings:
    """Read and validate the configuration; ConfigurationError if anything in it is wrong.

    Args:
        path: an ``echolm.toml``; None takes ``ECHOLM_CONFIG``, and without that the defaults.
            Relative paths in the file are relative to the file.
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
        except ValueError as error:  # neither TOML nor UTF-8
            raise ConfigurationError(
                f"configuration {path}: expected TOML, got: {error}"
            ) from error
        _anchor_paths(values, path.parent)
    check_names(os.environ, Settings.model_fields)
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
            # Symbolic links stay: a mounted secret's lead to another folder after each change.
            section[key] = os.path.abspath(base / os.path.expanduser(value))

    anchor(values, "data_dir")
    anchor(values, "event_log")
    anchor(values.get("embedding"), "model_dir")
    for key in ("keys_path", "tls_certificate", "tls_key"):
        anchor(values.get("gateway"), key)
    judging = values.get("judging")
    anchor(judging, "prompt")
    if isinstance(judging, dict) and ".py:" in str(judging.get("grader")):
        anchor(judging, "grader")
    anchor(values.get("routing"), "load_table")
    llms = values.get("llms")
    for llm in llms if isinstance(llms, list) else ():
        for key in ("tokenizer", "api_key_file", "tls_ca", "tls_certificate", "tls_key"):
            anchor(llm, key)
        if isinstance(llm, dict) and llm.get("chat_template") not in BUILT_IN_CHAT_TEMPLATES:
            anchor(llm, "chat_template")


def _explain(error: ValidationError, path: Path | str | None) -> str:
    lines = [f"configuration {path or '(environment)'} is not valid:"]
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"]) or "(file)"
        # Tables of a list have a number between the section and the key.
        name = ".".join(part.lower() for part in problem["loc"] if isinstance(part, str))
        if (present := RENAMED_KEYS.get(name)) and problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: renamed to {present}")
            continue
        if (why := REMOVED_KEYS.get(name)) and problem["type"] == "extra_forbidden":
            lines.append(f"  {key}: removed, leave it out: {why}")
            continue
        # What is wrong with a whole section is in the message.
        known = problem["type"] == "missing" or isinstance(problem["input"], dict | list | Settings)
        shown = _PASSWORD.sub("://***@", repr(problem["input"]))
        got = "" if known else f", got {'***' if _SECRET.search(key) else shown:.80}"
        lines.append(f"  {key}: {problem['msg']}{got}")
    return "\n".join(lines)
