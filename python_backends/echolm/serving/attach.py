"""Access to the example store of a data directory, whether a server runs on it or not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from echolm.serving.data_dir import DataDir, running_configuration
from echolm.serving.milvus_lite import MilvusLite
from echolm.settings import Settings
from echolm.settings.loading import load_settings


@contextmanager
def attached(settings: Settings) -> Iterator[Settings]:
    """The settings with the address of a Milvus that answers, as long as the context lasts.

    It is the configured Milvus; or that of the server that runs on ``data_dir``; or a Milvus Lite
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
    data = DataDir(settings.data_dir)
    try:
        milvus = MilvusLite.over(data)
        try:
            milvus.start()
            retrieval = settings.retrieval.model_copy(update={"milvus_uri": milvus.uri})
            yield settings.model_copy(update={"retrieval": retrieval})
        finally:
            milvus.stop()
    finally:
        data.close()
