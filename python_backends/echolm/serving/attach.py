"""Access to the example store of a data directory, whether a server runs on it or not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from echolm.errors import ConfigurationError
from echolm.serving.data_dir import DataDir, running_configuration
from echolm.serving.milvus_lite import MilvusLite
from echolm.settings import Settings
from echolm.settings.loading import load_settings


def running_settings(data_dir: Path) -> Settings:
    """The settings of the server that runs on a data directory, with its keys.

    ConfigurationError if none runs.
    """
    running = running_configuration(data_dir)
    if running is None:
        raise ConfigurationError(f"data directory {data_dir}: expected a running server, got none")
    return load_settings(running)


@contextlib.contextmanager
def attached(settings: Settings) -> Iterator[Settings]:
    """The settings with the address of a Milvus that answers, as long as the context lasts.

    It is the configured one; or that of the server that runs on ``data_dir``; or a Milvus Lite
    that is started here, and then no server can start on ``data_dir`` meanwhile.

    Raises:
        ConfigurationError: Milvus Lite is missing, or a server is just starting.
        UnavailableError: Milvus Lite does not start.
    """
    if settings.retrieval.milvus_uri:
        yield settings
        return
    if running := running_configuration(settings.data_dir):
        yield load_settings(running)
        return
    with contextlib.ExitStack() as closing:
        data = closing.enter_context(contextlib.closing(DataDir(settings.data_dir)))
        milvus = MilvusLite.over(data)
        closing.callback(milvus.stop)
        milvus.start()
        retrieval = settings.retrieval.model_copy(update={"milvus_uri": milvus.uri})
        yield settings.model_copy(update={"retrieval": retrieval})
