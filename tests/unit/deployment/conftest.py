from __future__ import annotations

import pytest
from helm_chart import Helm, unpack


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return unpack(tmp_path_factory.mktemp("helm"))
