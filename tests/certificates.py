"""Certificates for servers of tests: an authority, and what it certifies."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")


@dataclass(frozen=True)
class Certificate:
    """PEM files of a certificate and its private key."""

    certificate: Path
    key: Path


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(folder: Path, name: str = "ca") -> Certificate:
    """A new authority."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    _openssl(
        *("req", "-x509", *_EC, "-subj", f"/CN=test {name}", "-keyout", made.key),
        *("-out", made.certificate, "-addext", "keyUsage=critical,keyCertSign"),
    )
    return made


def certified(by: Certificate, name: str) -> Certificate:
    """A certificate for localhost and 127.0.0.1, as server and as client."""
    folder = by.certificate.parent
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    _openssl("req", *_EC, "-subj", f"/CN={name}", "-keyout", made.key, "-out", request)
    _openssl(
        *("x509", "-req", "-in", request, "-CA", by.certificate, "-CAkey", by.key),
        *("-CAcreateserial", "-days", "1", "-extfile", extensions, "-out", made.certificate),
    )
    return made
