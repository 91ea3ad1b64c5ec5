"""What the tests of a real Triton share."""

import tempfile
from pathlib import Path

import pytest

from tests.serve.double import add_double


@pytest.fixture
def small_repository(tmp_path: Path) -> Path:
    """One model that starts in a second."""
    add_double(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory for temporary files, empty, and used by this test alone."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory
