"""The front door's library runs wherever Triton does, and shows nothing but its entry points."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from echolm.errors import ConfigurationError
from echolm.front_door.build import GLIBC, compile_front_door


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("library") / "libtriton_echolm.so"
    compile_front_door(made)
    return made


def test_it_needs_no_later_c_library(library: Path) -> None:
    versions = re.findall(rb"GLIBC_(\d+)\.(\d+)", library.read_bytes())
    assert versions
    newest = max((int(major), int(minor)) for major, minor in versions)
    assert newest <= tuple(map(int, GLIBC.split(".")))


def test_it_exports_its_entry_points_only(library: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    listed = ["nm", "--dynamic", "--defined-only", str(library)]
    lines = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.splitlines()
    exported = {line.split()[-1] for line in lines}
    assert exported == {
        "TRITONBACKEND_ModelInstanceInitialize",
        "TRITONBACKEND_ModelInstanceFinalize",
        "TRITONBACKEND_ModelInstanceExecute",
    }


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    with pytest.raises(ConfigurationError, match="front door: expected it to compile"):
        compile_front_door(tmp_path / "libtriton_echolm.so", "no-such-sanitizer")
    assert list(tmp_path.iterdir()) == []
