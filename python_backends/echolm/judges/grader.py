"""The judge ``grader``: calls a function that the operator has written."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import ClassVar, cast

from echolm.errors import ConfigurationError
from echolm.judges.base import Judgement, Scale

Grader = Callable[[str, str, str | None], float]
"""(request, answer, reference) -> quality in [0, 1]; called in a thread."""


@dataclass(frozen=True)
class GraderJudge:
    """Calls a function: a test suite, a checker, a reward model."""

    grader: Grader
    kind: ClassVar[str] = "grader"
    scale: ClassVar[Scale] = "absolute"

    async def judge(self, request: str, answer: str, reference: str | None) -> Judgement:
        started = time.perf_counter()
        score = float(await asyncio.to_thread(self.grader, request, answer, reference))
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"judging.grader: expected a number in [0, 1], got {score}")
        return Judgement(score, seconds=time.perf_counter() - started)


def load_grader(name: str) -> Grader:
    """The function that ``judging.grader`` names.

    Args:
        name: ``module:function``, or ``path/to/file.py:function``. The file can import what it
            could as a script; or, if it is in a package, what one beside that package could.

    Raises:
        ConfigurationError: there is no such file, module or function.
    """
    source, _, function = name.rpartition(":")
    if source.endswith(".py") and not Path(source).is_file():
        raise ConfigurationError(
            f"judging.grader: expected a file, got {source!r}, which is none; relative paths are "
            "relative to the configuration file"
        )
    try:
        module = _run_file(Path(source)) if source.endswith(".py") else import_module(source)
        grader = getattr(module, function)
    except Exception as error:  # whatever the module does when it is imported
        raise ConfigurationError(
            "judging.grader: expected module:function or path/to/file.py:function that can be "
            f"imported, got {name!r}: {error}"
        ) from error
    if not callable(grader):
        raise ConfigurationError(
            f"judging.grader: expected a function, got {name!r}, a {type(grader).__name__}"
        )
    return cast(Grader, grader)


def absolute_grader(name: str) -> str:
    """A grader's name with the path of its file, if it has one, made absolute."""
    return str(Path(name).resolve()) if ".py:" in name else name


def _run_file(file: Path) -> ModuleType:
    """The module of a file, with the folder that its imports start from on ``sys.path``."""
    folder, name = file.resolve().parent, file.stem
    while (folder / "__init__.py").is_file():  # a module of a package is imported by its full name
        folder, name = folder.parent, f"{folder.name}.{name}"
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError("no Python file")
    module = module_from_spec(spec)
    # Dataclasses look for their module there; one of the same name keeps its place.
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module
