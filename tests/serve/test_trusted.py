"""What a server takes from a repository: the project's own Python, and what a key has signed."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.core.errors import ArtifactError
from pipeline.core.manifest import MANIFEST, write_manifest
from pipeline.exporting.options import ExportOptions
from pipeline.exporting.run import export
from pipeline.exporting.versions import rollback
from pipeline.serve import trusted_copy
from pipeline.serve.repository_code import check_code
from pipeline.serve.run import running_server
from pipeline.serve.triton.ports import free_ports
from pipeline.serve.trusted_copy import TrustedCopy
from tests.conftest import Shop

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))

COPY_FILE = trusted_copy._copy_file


def test_a_repository_as_exported_has_the_code_of_the_project(shop: Shop) -> None:
    check_code(shop.repository)


def add_line(repository: Path) -> None:
    (file,) = repository.glob("*/1/request_runtime/request.py")
    file.write_text(file.read_text() + "import os\n")


def add_model(repository: Path) -> None:
    (repository / "other" / "1").mkdir(parents=True)
    (repository / "other" / "1" / "model.py").write_text("import os\n")


def add_module(repository: Path) -> None:
    (file,) = repository.glob("*/1/request_runtime")
    (file / "numpy.py").write_text("import os\n")


def add_compiled(repository: Path) -> None:
    (folder,) = repository.glob("*/1/request_runtime")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "request.cpython-310.pyc").write_bytes(b"code")


def add_library(repository: Path) -> None:
    (folder,) = repository.glob("*/1/request_runtime")
    (folder / "lookups.cpython-311-x86_64-linux-gnu.so").write_bytes(b"code")


def listed(change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Change a repository and write its manifest anew, as an attacker would."""

    def changed(repository: Path) -> None:
        change(repository)
        (repository / MANIFEST).unlink()
        write_manifest(repository, "repository", {}, None)

    return changed


def set_backend(repository: Path) -> None:
    file = next(repository.glob("*_requests_v1/config.pbtxt"))
    file.write_text(file.read_text().replace('backend: "python"', "backend: 'x'"))


def set_environment(repository: Path) -> None:
    with next(repository.glob("*_requests_v1/config.pbtxt")).open("a") as stream:
        stream.write('parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/x" } }\n')


def add_link(repository: Path) -> None:
    (repository / "other").symlink_to(repository.parent)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (add_line, "is not the Python of this version"),
        (add_model, "holds other/1/model.py, which is no part of it"),
        (listed(add_model), "is not the Python of this version"),
        (listed(add_module), "is not the Python of this version"),
        (listed(add_compiled), "is compiled Python"),
        (add_compiled, "is compiled Python"),
        (add_library, "is no part of it"),
        (listed(add_library), "is no file that an export writes"),
        (listed(set_backend), "sets 'x', which no export does"),
        (listed(set_environment), "sets 'EXECUTION_ENV_PATH'"),
        (add_link, "is no part of it"),
    ],
)
def test_other_code_is_refused(
    shop: Shop, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(shop.repository, repository)
    change(repository)
    with pytest.raises(ArtifactError, match=words):
        check_code(repository)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["export", "{run}", "--out", "{out}", "--sign", "none.pem"], "none.pem cannot be read"),
        (["serve", "{repository}", "--trusted-key", "none.pub"], "none.pub cannot be read"),
        (["rollback", "{repository}", "--sign", "README.md"], "no Ed25519 private key"),
        (
            ["export", "{run}", "--out", "{out}", "--sign", "{key}", "--format", "onnx"],
            "--sign is for a Triton repository",
        ),
        (["serve", "{repository}", "--trusted-key", "{public}"], "is not signed"),
    ],
)
def test_wrong_keys_end_with_one_line(
    shop: Shop, tmp_path: Path, words: list[str], message: str
) -> None:
    from tests.core.test_signature import pem

    places = {
        "run": shop.run,
        "repository": shop.repository,
        "out": tmp_path / "out",
        "key": pem(tmp_path / "key.pem", KEY),
        "public": pem(tmp_path / "key.pub", KEY, public=True),
    }
    result = CliRunner().invoke(app, [word.format(**places) for word in words])
    assert result.exit_code != 0
    assert message in str(result.exception)


def test_repository_that_is_exported_anew_during_the_copy_is_copied_again(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "repository"
    export(shop.run, repository, key=KEY)
    copied: list[Path] = []

    def copy_file(source: Path, target: Path, num_bytes: int) -> None:
        copied.append(source)
        if len(copied) == 1:
            shutil.rmtree(repository)
            export(shop.run, repository, ExportOptions(default_k=5), key=KEY)
        COPY_FILE(source, target, num_bytes)

    monkeypatch.setattr(trusted_copy, "_copy_file", copy_file)
    with TrustedCopy(repository, [KEY.public_key()]) as copy:
        manifest = (copy.path / MANIFEST).read_bytes()
        assert manifest == (repository / MANIFEST).read_bytes()


@pytest.mark.slow
def test_a_server_takes_up_signed_exports_alone(shop: Shop, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    export(shop.run, repository, key=KEY)
    lines: list[str] = []
    with (
        TrustedCopy(repository, [KEY.public_key()]) as copy,
        running_server(copy.path, ports=free_ports(), reload_seconds=1, any_code=True) as server,
        copy.following(0.2, lines.append),
    ):

        def serves(version: int) -> bool:
            end = time.monotonic() + 60
            while time.monotonic() < end:
                if server.model_version("recommender") == version:
                    return True
                time.sleep(0.2)
            return False

        assert serves(1)
        export(shop.run, repository, ExportOptions(default_k=5), key=KEY)
        assert serves(2)
        rollback(repository, key=KEY)
        assert serves(1)
        (repository / "manifest.sig").unlink()
        export(shop.run, repository, ExportOptions(default_k=7))
        time.sleep(3)
        assert serves(1)
    # a copy between the writes of a manifest and its signature reports one line more
    *earlier, last = lines
    assert last.endswith("repository is not signed. Export it with --sign KEY.")
    assert all("is not signed" in line for line in earlier)
    assert len(earlier) <= 2  # the second export and the rollback
