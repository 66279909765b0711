from pathlib import Path

import pytest
from taskdata import write

from kvfoot.evaluate.tasks import Corpus, read_corpus


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture(scope="session")
def dev(data: Path) -> Corpus:
    return read_corpus(data, "dev")
