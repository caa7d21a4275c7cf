#!/usr/bin/env python3
"""Write python_backends/SETTINGS.md, the reference of all settings, from the schema."""

from __future__ import annotations

import argparse
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from echolm.settings.schema import Settings
from echolm.settings.sections import LLMSettings
from pydantic import BaseModel, JsonValue, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

FILE = Path(__file__).parents[1] / "python_backends" / "SETTINGS.md"

_HEAD = """\
# Settings

Every key of `echolm.toml`. Give the file with `echolm serve --config echolm.toml` or name it in
`ECHOLM_CONFIG`; what it does not set keeps the default. Relative paths are relative to the file.

An environment variable overrides the file: `ECHOLM_<SECTION>__<KEY>`, as in
`ECHOLM_RETRIEVAL__TOP_N=64`; `ECHOLM_<KEY>` for a key outside of all sections, as in
`ECHOLM_DATA_DIR=/data`. Lists and tables are written as JSON. With `_FILE` at its end a variable
names a file that holds the value, which suits secrets:
`ECHOLM_FEEDBACK__SIGNING_KEY_FILE=/run/secrets/signing_key`.

An unknown key or a wrong value stops the start.

This file is written by `python scripts/generate_settings_reference.py`; change the descriptions in
`echolm/settings/sections.py` and `echolm/settings/schema.py`.
"""

_TYPES = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
_SIGNS = {Gt: (">", "gt"), Ge: ("≥", "ge"), Lt: ("<", "lt"), Le: ("≤", "le")}

SECTIONS: dict[str, type[BaseModel]] = {
    name: field.annotation
    for name, field in Settings.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
} | {"llms": LLMSettings}
"""The sections of ``echolm.toml`` by name."""


def settings_reference() -> str:
    """The reference as Markdown: one table a section."""
    single = {key: f for key, f in Settings.model_fields.items() if key not in SECTIONS}
    parts = [_HEAD, "## Top of the file\n", _table(single)]
    for name, section in SECTIONS.items():
        title = f"`[[{name}]]`, one for each LLM" if section is LLMSettings else f"`[{name}]`"
        parts += [f"## {title}\n", _section(section)]
    return "\n".join(parts)


def _section(section: type[BaseModel]) -> str:
    meaning = " ".join((section.__doc__ or "").split())
    return f"{meaning}\n\n{_table(section.model_fields)}"


def _table(fields: Mapping[str, FieldInfo]) -> str:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in fields.items():
        meaning = " ".join((field.description or "").split())
        cells = (f"`{key}`", _type_of(field), _default_of(field), meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _type_of(field: FieldInfo) -> str:
    """The type in words, with its limits."""
    limits = [
        f"{sign} {getattr(limit, attribute):g}"
        for limit in field.metadata
        for kind, (sign, attribute) in _SIGNS.items()
        if isinstance(limit, kind)
    ]
    return ", ".join([_name_of(field.annotation), *limits])


def _name_of(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return _name_of(next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        return f"list of {_name_of(arguments[0])}s"
    if origin is dict and arguments[1] is JsonValue:
        return "table"
    if origin is dict:
        return "table" if arguments[1] is Any else f"table of {_name_of(arguments[1])}s"
    return "secret text" if annotation is SecretStr else _TYPES[annotation]


def _default_of(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "unset"
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, dict):
        return f"`{{{', '.join(f'{k} = {v}' for k, v in value.items())}}}`"
    return f"`{json.dumps(str(value) if isinstance(value, Path) else value)}`"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=FILE, help="default: %(default)s")
    options = parser.parse_args()
    options.output.write_text(settings_reference(), encoding="utf-8")
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
