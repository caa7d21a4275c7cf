"""Environment variables that override ``echolm.toml``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from echolm.errors import ConfigurationError

ENV_PREFIX = "ECHOLM_"

ENV_FILE_SUFFIX = "_FILE"


def with_values_of_files(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    """Environment variables (names in small letters), with the contents of files in place."""
    prefix, suffix = ENV_PREFIX.lower(), ENV_FILE_SUFFIX.lower()
    found = dict(variables)
    for name, file in variables.items():
        if not (name.startswith(prefix) and name.endswith(suffix)):
            continue
        target = name[: -len(suffix)]
        if target in variables:
            raise ConfigurationError(
                f"environment variables {target.upper()} and {name.upper()}: expected one of "
                "them, got both; unset one"
            )
        try:
            value = Path(file or "").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problem = error.strerror if isinstance(error, OSError) else "no UTF-8"
            raise ConfigurationError(
                f"environment variable {name.upper()}: expected a readable file, got {file!r}: "
                f"{problem}"
            ) from None
        if not value:
            raise ConfigurationError(
                f"environment variable {name.upper()}: expected a value in {file}, got an empty "
                "file"
            )
        del found[name]
        found[target] = value
    return found
