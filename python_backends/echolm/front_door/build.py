"""Builds the front door; ``python -m echolm.front_door.build`` puts it where Triton looks.

The compiler is Zig's, which comes as a Python package and needs nothing of the system. What it
makes runs on any Linux with the C library named below or a later one.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

from echolm.errors import ConfigurationError

GLIBC = "2.31"
"""The first with a wait that no change of the system's clock prolongs is 2.30."""
LIBRARY = "libtriton_echolm.so"
MODELS = ("echolm", "echolm_stream")
"""Models of the repository that are the front door; each has a copy of its own."""
_SOURCES = Path(__file__).parent
_CORE = _SOURCES.parents[2] / "model_repository" / "core"
_FLAGS = (
    *("-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
    # Late responses of other models may come when the model has been unloaded.
    "-Wl,-z,nodelete",
    f"-Wl,--version-script={_SOURCES / 'front_door.map'}",
)


def compile_front_door(output: Path, sanitizer: str = "") -> None:
    """Compile the library.

    Args:
        output: the file to write; one that is loaded already is replaced, not changed.
        sanitizer: ``address`` or ``thread``, for tests; needs the system's g++, whose runtime of
            that sanitizer then has to be loaded before Triton.

    Raises:
        ConfigurationError: the compiler is missing or failed.
    """
    if sanitizer:
        compiler = ["g++", f"-fsanitize={sanitizer}", "-O1", "-g", "-fno-omit-frame-pointer"]
    else:
        target = f"{platform.machine()}-linux-gnu.{GLIBC}"
        compiler = [sys.executable, "-m", "ziglang", "c++", "-target", target, "-O2", "-s"]
    made = output.with_name(f"{output.name}.{os.getpid()}")
    command = [*compiler, *_FLAGS, str(_SOURCES / "front_door.cc"), "-o", str(made)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ConfigurationError(
                f"front door: expected it to compile, got exit status {done.returncode} of "
                f"`{' '.join(command)}`; install the compiler with `pip install ziglang`:\n"
                f"{done.stderr}"
            )
        made.replace(output)
    except FileNotFoundError as error:
        raise ConfigurationError(f"front door: expected the compiler {compiler[0]}") from error
    finally:
        made.unlink(missing_ok=True)


def main() -> int:
    """Build the library for each model of the checkout."""
    first, *others = (_CORE / model / LIBRARY for model in MODELS)
    print("Building the front door (the first time takes about a minute)", file=sys.stderr)
    try:
        compile_front_door(first)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1
    for other in others:
        copy = other.with_name(f"{other.name}.{os.getpid()}")
        copy.write_bytes(first.read_bytes())
        copy.chmod(0o755)
        copy.replace(other)
    return 0


if __name__ == "__main__":
    sys.exit(main())
