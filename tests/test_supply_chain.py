"""Bill of materials, and the audit of packages, on advisories that the tests write."""

import json
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

DASHBOARD = {
    "id": "GHSA-test-0001",
    "aliases": ["CVE-2026-00001"],
    "affected": [
        {
            "package": {"ecosystem": "PyPI", "name": "Distributed"},
            "ranges": [
                {"type": "GIT", "events": [{"introduced": "0"}]},
                {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2026.1.1"}]},
            ],
        }
    ],
}
"""An advisory as those of OSV: every version of `distributed` before 2026.1.1."""


def audit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / ".ci/audit.py", *arguments]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True)


def with_events(*events: tuple[str, str]) -> dict[str, Any]:
    affected = {
        "package": {"ecosystem": "PyPI", "name": "distributed"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{kind: at} for kind, at in events]}],
    }
    return {"id": "PYSEC-1", "affected": [affected]}


@pytest.fixture(scope="module")
def bom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bom") / "sbom.cdx.json"
    with path.open("wb") as file:
        subprocess.run([sys.executable, ROOT / "docker/sbom.py"], check=True, stdout=file)
    return path


def accept(tmp_path: Path, *names: str) -> Path:
    path = tmp_path / "accepted.toml"
    path.write_text("".join(f'{name} = "it is not reached"\n' for name in names))
    return path


def test_bill_of_materials_lists_what_is_installed(bom: Path) -> None:
    content = json.loads(bom.read_text())
    versions = {c["name"]: c["version"] for c in content["components"]}
    for name in ("torch", "pyarrow", "nvtabular", "tritonclient"):
        assert versions[name] == version(name)
    assert versions["tritonserver"] == "2.51.0"  # which tests of the server see it answer
    references = [c["bom-ref"] for c in content["components"]]
    assert len(set(references)) == len(references)
    assert (content["bomFormat"], content["specVersion"]) == ("CycloneDX", "1.6")


@pytest.mark.parametrize("form", ["json", "yaml", "zip"])
def test_audit_names_a_known_vulnerability(tmp_path: Path, bom: Path, form: str) -> None:
    database = tmp_path / "database"
    database.mkdir()
    if form == "yaml":
        (database / "GHSA.yaml").write_text(yaml.safe_dump(DASHBOARD))
    else:
        (database / "GHSA.json").write_text(json.dumps(DASHBOARD))
    if form == "zip":
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            archive.write(database / "GHSA.json", "GHSA.json")
        database = tmp_path / "all.zip"
    refused = audit("--database", database, "--sbom", bom, "--accepted", accept(tmp_path))
    assert refused.returncode == 1
    assert "distributed 2024.11.2: CVE-2026-00001, GHSA-test-0001: NOT ACCEPTED" in refused.stdout
    names = accept(tmp_path, "CVE-2026-00001", "CVE-2026-00002")
    accepted = audit("--database", database, "--sbom", bom, "--accepted", names)
    assert accepted.returncode == 0
    assert "accepted: it is not reached" in accepted.stdout
    assert "CVE-2026-00002 of accepted.toml concerns nothing here." in accepted.stdout


@pytest.mark.parametrize(
    ("record", "status"),
    [
        (with_events(("introduced", "0")), 1),
        (with_events(("introduced", "0"), ("fixed", "2024.11.2")), 0),
        (with_events(("introduced", "0"), ("fixed", "2024.11.10")), 1),
        (with_events(("introduced", "0"), ("last_affected", "2024.11.2")), 1),
        (with_events(("introduced", "0"), ("last_affected", "2024.11.1")), 0),
        (with_events(("introduced", "2024.12.0")), 0),
        (with_events(("fixed", "2023.1.0"), ("introduced", "0"), ("introduced", "2024.1.0")), 1),
        (with_events(("introduced", "0")) | {"withdrawn": "2026-01-01T00:00:00Z"}, 0),
        ({"id": "PYSEC-2", "affected": [{"package": {"ecosystem": "npm", "name": "torch"}}]}, 0),
    ],
)
def test_audit_reads_ranges(tmp_path: Path, bom: Path, record: object, status: int) -> None:
    (tmp_path / "record.json").write_text(json.dumps(record))
    unrelated = {"id": "PYSEC-3", "affected": []}
    (tmp_path / "unrelated.json").write_text(json.dumps(unrelated))
    done = audit("--database", tmp_path, "--sbom", bom, "--accepted", accept(tmp_path))
    assert done.returncode == status, done.stdout + done.stderr


def test_audit_sees_builds_of_a_version(tmp_path: Path) -> None:
    package = {"type": "library", "name": "torch", "version": "2.13.0+cpu"}
    package["purl"] = "pkg:pypi/torch@2.13.0%2Bcpu"
    (tmp_path / "sbom.json").write_text(json.dumps({"components": [package]}))
    affected = {"package": {"ecosystem": "PyPI", "name": "torch"}, "versions": ["2.13"]}
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "1.json").write_text(json.dumps({"id": "X-1", "affected": [affected]}))
    done = audit("--sbom", tmp_path / "sbom.json", "--database", tmp_path / "records")
    assert done.returncode == 1
    assert "torch 2.13.0+cpu: X-1: NOT ACCEPTED" in done.stdout


def test_audit_of_an_empty_database_is_no_success(tmp_path: Path, bom: Path) -> None:
    assert audit("--database", tmp_path, "--sbom", bom).returncode == 2
