"""The warm process and the inputs of the fault matrix, made once a worker."""

import shutil
from collections.abc import Iterator

import pytest

from tests.faults.commands import ForkServer
from tests.faults.stages import Bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """Inputs of all stages. Skipped with the reason where the shim cannot be compiled."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler `cc`, which builds the library that makes calls fail")
    folder = tmp_path_factory.mktemp("faults")
    (folder / "scratch").mkdir()
    server = ForkServer(folder / "scratch")
    yield Bench(server, folder)
    server.close()
