"""Environment variables that override ``echolm.toml``.

``ECHOLM_RETRIEVAL__TOP_N=64`` sets the key ``top_n`` of the section ``retrieval``. A variable that
ends with ``_FILE`` names a file with the value, which is how containers get their secrets
(``ECHOLM_FEEDBACK__SIGNING_KEY_FILE=/run/secrets/signing_key``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from echolm.errors import ConfigurationError

ENV_PREFIX = "ECHOLM_"
ENV_CONFIG = f"{ENV_PREFIX}CONFIG"
"""Names the configuration file."""

_FILE_SUFFIX = "_FILE"


def check_names(variables: Iterable[str], sections: Collection[str]) -> None:
    """Raise a ConfigurationError if a variable with EchoLM's prefix names no section.

    Args:
        variables: names of environment variables, EchoLM's and others.
        sections: the sections and single keys at the top of ``echolm.toml``.
    """
    known = {name.upper() for name in sections}
    for name in variables:
        section = name.removeprefix(ENV_PREFIX).removesuffix(_FILE_SUFFIX).split("__")[0]
        if name.startswith(ENV_PREFIX) and name != ENV_CONFIG and section not in known:
            raise ConfigurationError(
                f"environment variable {name}: expected ECHOLM_<SECTION>__<KEY> with a section "
                f"among {sorted(known)}, got {section!r}; correct or unset it"
            )


def with_values_of_files(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    """The variables (names in small letters), those that name a file replaced by its content.

    ConfigurationError if a file cannot be read or is empty, or a value comes in both ways.
    """
    prefix, suffix = ENV_PREFIX.lower(), _FILE_SUFFIX.lower()
    values = dict(variables)
    for name, file in variables.items():
        if not (name.startswith(prefix) and name.endswith(suffix)):
            continue
        key = name[: -len(suffix)]
        if key in variables:
            raise ConfigurationError(
                f"environment variables {key.upper()} and {name.upper()}: expected one of them, "
                "got both; unset one"
            )
        try:
            value = Path(file or "").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            problem = error.strerror if isinstance(error, OSError) else "no UTF-8"
            expected = f"expected a readable file, got {file!r}: {problem}"
            raise ConfigurationError(f"environment variable {name.upper()}: {expected}") from None
        if not value:
            expected = f"expected a value in {file}, got an empty file"
            raise ConfigurationError(f"environment variable {name.upper()}: {expected}")
        del values[name]
        values[key] = value
    return values
