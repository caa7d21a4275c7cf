"""Where and with what figures were measured: goes into every report."""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = (
    "echolm",
    "nvidia-pytriton",
    "openvino-genai",
    "milvus-lite",
    "pymilvus",
    "onnxruntime",
    "onnxruntime-gpu",
)


def versions() -> dict[str, str]:
    """Versions of what the figures depend on, as far as it is installed."""
    installed = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def package_version(python: Path, package: str) -> str:
    """Of a package in another interpreter's environment; empty if it has none."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def gpus() -> list[str]:
    """Name, memory and driver of each GPU; none without ``nvidia-smi``."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def host() -> dict[str, Any]:
    """The machine."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
