"""The options ``--config`` and ``--data-dir``, and the settings that they stand for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from echolm.errors import ConfigurationError
from echolm.settings import ENV_CONFIG, Settings
from echolm.settings.loading import load_settings


def add_options(parser: argparse.ArgumentParser, default: Any = None) -> None:
    """Add both; ``argparse.SUPPRESS`` lets them stand before and behind a subcommand's name."""
    parser.add_argument(
        "--config",
        type=Path,
        default=default,
        metavar="FILE",
        help=f"echolm.toml (default: ${ENV_CONFIG}, else built-in values)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=default,
        metavar="DIR",
        help="everything the server writes (default: data_dir of the configuration)",
    )


def configuration_file(args: argparse.Namespace) -> Path | None:
    """The configuration that is read, if it is not the built-in one."""
    named = args.config or os.environ.get(ENV_CONFIG)
    return Path(named) if named else None


def settings_from(args: argparse.Namespace, *, must_exist: bool) -> Settings:
    """The settings that the options ask for.

    Args:
        must_exist: whether the verb reads what is in the data directory.

    Raises:
        ConfigurationError: the configuration is wrong, or the data directory is not EchoLM's.
    """
    settings = load_settings(configuration_file(args))
    if args.data_dir is not None:
        settings = settings.model_copy(update={"data_dir": args.data_dir})
    # With Milvus and Redis on servers the directory has nothing that cannot be made anew from
    # them. One that was named on the command line is expected to exist all the same.
    elsewhere = settings.retrieval.milvus_uri and settings.event_log
    if must_exist and (args.data_dir is not None or not elsewhere):
        _check(settings)
    return settings


def _check(settings: Settings) -> None:
    """A data directory that has been used has at least one of its files."""
    from echolm.serving.data_dir import milvus_database

    path = settings.data_dir
    files = [path / "lock", milvus_database(path), settings.event_log_path]
    files += [settings.statistics_path, settings.write_ahead_log_path]
    if not path.is_dir():
        got = "a file" if path.exists() else "nothing there"
    elif any(file and file.exists() for file in files):
        return
    else:
        got = "a directory with none of its files"
    raise ConfigurationError(
        f"data directory {path}: expected that of an EchoLM server, got {got}; give the right one "
        "with --data-dir, or data_dir in the configuration"
    )
