"""How EchoLM and a server elsewhere prove to each other who they are: TLS and keys."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from echolm.errors import ConfigurationError
from echolm.settings import LLMSettings


def api_key(llm: LLMSettings) -> str:
    """The key of the LLM's server; empty if there is none.

    ConfigurationError if its file cannot be read, is empty, or holds what no HTTP header can.
    """
    key, setting = llm.api_key.get_secret_value(), "api_key"
    if llm.api_key_file is not None:
        setting = "api_key_file"
        try:
            key = _read(llm, setting, llm.api_key_file).decode("ascii").strip()
        except UnicodeDecodeError:
            key = "\n"  # refused below
        if not key:
            raise ConfigurationError(
                f"LLM {llm.name}: llms.api_key_file: expected a key in {llm.api_key_file}, got an "
                "empty file"
            )
    if not (key.isascii() and (key.isprintable() or not key)) or " " in key:
        raise ConfigurationError(
            f"LLM {llm.name}: llms.{setting}: expected one line of ASCII without spaces, got "
            "another text"
        )
    return key


def ssl_context(llm: LLMSettings) -> ssl.SSLContext | None:
    """What an ``https`` server is checked with; None for ``http``.

    ConfigurationError if a file cannot be used.
    """
    if not llm.url.startswith("https://"):
        return None
    _check_files(llm)
    context = ssl.create_default_context(cafile=llm.tls_ca)
    if llm.tls_certificate is not None:
        context.load_cert_chain(llm.tls_certificate, llm.tls_key, password="")
    return context


def channel_credentials(llm: LLMSettings) -> grpc.ChannelCredentials | None:
    """What a ``grpcs`` server is checked with; None for one without TLS.

    ConfigurationError if a file cannot be used.
    """
    if not llm.url.startswith("grpcs://"):
        return None
    _check_files(llm)
    names = ("tls_ca", "tls_key", "tls_certificate")
    files = (getattr(llm, name) for name in names)
    ca, key, certificate = (file and file.read_bytes() for file in files)
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _check_files(llm: LLMSettings) -> None:
    """ConfigurationError if a file is none of its kind; gRPC itself would tell nobody."""
    checked, mend = "tls_ca", "certificates in PEM format"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if llm.tls_ca is not None:
            _read(llm, checked, llm.tls_ca)
            context.load_verify_locations(llm.tls_ca)
        if llm.tls_certificate is not None and llm.tls_key is not None:
            _read(llm, "tls_certificate", llm.tls_certificate)
            _read(llm, "tls_key", llm.tls_key)
            checked = "tls_certificate and llms.tls_key"
            mend = "a certificate and its key without a passphrase, in PEM format"
            context.load_cert_chain(llm.tls_certificate, llm.tls_key, password="")
    except ssl.SSLError as error:
        raise ConfigurationError(
            f"LLM {llm.name}: llms.{checked}: expected {mend}, got: {error.reason or error}"
        ) from error


def _read(llm: LLMSettings, setting: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"LLM {llm.name}: llms.{setting}: expected a readable file, got {file}: "
            f"{error.strerror}"
        ) from error
