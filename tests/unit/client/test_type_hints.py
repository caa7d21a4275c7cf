"""What tools that read type hints at run time need: hints of all public names can be resolved."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from typing import Any

import echolm_client
import pytest


def modules() -> Iterator[Any]:
    yield echolm_client
    for module in pkgutil.walk_packages(echolm_client.__path__, "echolm_client."):
        yield importlib.import_module(module.name)


def public_callables() -> dict[str, Any]:
    """Public functions and classes of all modules, and the methods of those classes, by name."""
    found: dict[str, Any] = {}
    for module in modules():
        for name, value in vars(module).items():
            is_ours = getattr(value, "__module__", "").startswith("echolm_client")
            if name.startswith("_") or not is_ours:
                continue
            if inspect.isfunction(value):
                found[f"{value.__module__}.{name}"] = value
            elif inspect.isclass(value):
                found[f"{value.__module__}.{name}"] = value
                for attribute in dir(value):
                    method = inspect.getattr_static(value, attribute)
                    method = getattr(method, "fget", None) or getattr(method, "__func__", method)
                    is_public = attribute == "__init__" or not attribute.startswith("_")
                    if not is_public or not inspect.isfunction(method):
                        continue
                    if method.__module__.startswith("echolm_client"):  # not that of a Protocol
                        found[f"{value.__module__}.{name}.{attribute}"] = method
    return found


CALLABLES = public_callables()


def test_the_public_names_are_found() -> None:
    for name in ("_client.Client.generate", "_aio.AsyncClient.stream", "cli.add_subcommands"):
        assert f"echolm_client.{name}" in CALLABLES


@pytest.mark.parametrize("name", sorted(CALLABLES))
def test_hints_can_be_resolved(name: str) -> None:
    hints = typing.get_type_hints(CALLABLES[name])
    if inspect.isfunction(CALLABLES[name]):
        assert "return" in hints
