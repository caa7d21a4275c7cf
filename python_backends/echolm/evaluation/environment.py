"""Where and with what figures were measured: goes into every report."""

from __future__ import annotations

import platform
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
)


def versions() -> dict[str, str]:
    """Versions of what the figures depend on."""
    return {name: metadata.version(name) for name in _PACKAGES}


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
