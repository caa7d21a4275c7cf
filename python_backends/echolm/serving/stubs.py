"""The processes in which Triton's python backend runs models, and whether they live.

Triton starts one for each instance of a model, as its child::

    triton_python_backend_stub MODEL_REPOSITORY/MODEL/VERSION/model.py … INSTANCE …

From release 24 on it never starts one again: a model without its process stays ready, and each of
its requests fails after a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

from echolm.serving.triton_installation import STUB

_GONE = frozenset({psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD})


def stubs_of(triton: int, models: Mapping[str, Path]) -> dict[str, list[psutil.Process]]:
    """The processes of each model; a model of another backend has none.

    Args:
        triton: process id.
        models: directories by name.
    """
    found: dict[str, list[psutil.Process]] = {}
    names = {directory.resolve(): name for name, directory in models.items()}
    try:
        children = psutil.Process(triton).children()
    except psutil.NoSuchProcess:
        return found
    for child in children:
        with contextlib.suppress(psutil.Error):
            program, *arguments = child.cmdline() or [""]
            if Path(program).name == STUB and arguments:
                for directory in Path(arguments[0]).resolve().parents:
                    if directory in names:
                        found.setdefault(names[directory], []).append(child)
    return found


def is_gone(process: psutil.Process) -> bool:
    """Whether it has ended; nobody may have collected it."""
    try:
        return not process.is_running() or process.status() in _GONE
    except psutil.Error:
        return True


def is_stopped(process: psutil.Process) -> bool:
    """Whether it was stopped by a signal, and so does nothing until another one lets it go on."""
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False


def kill(processes: Iterable[psutil.Process]) -> None:
    """End processes at once, also those that were stopped."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
