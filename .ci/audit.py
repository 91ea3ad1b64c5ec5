"""Look the installed Python packages up among known vulnerabilities; end with 1 for a new one.

    uv run python .ci/audit.py                                    this environment, OSV of today
    uv run python .ci/audit.py --database all.zip --sbom sbom.cdx.json     offline, an image

The database holds records of the OSV schema (https://ossf.github.io/osv-schema/), JSON or YAML:
OSV's zip file for PyPI, or a directory, such as a checkout of github.com/pypa/advisory-database.
What .ci/accepted.toml names, with the reason why it cannot be reached, is printed and no failure.
"""

import argparse
import io
import json
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

DATABASE = "https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip"
ACCEPTED = Path(__file__).parent / "accepted.toml"


def main() -> int:
    """Print what is known of the packages; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sbom", type=Path, help="packages of a CycloneDX file in JSON")
    parser.add_argument("--database", type=Path, help="zip file or directory of OSV records")
    parser.add_argument("--accepted", type=Path, default=ACCEPTED)
    arguments = parser.parse_args()

    packages = installed() if arguments.sbom is None else listed(arguments.sbom)
    reasons = tomllib.loads(arguments.accepted.read_text())
    num_records, num_new = 0, 0
    seen: set[str] = set()
    for record in records(arguments.database):
        num_records += 1
        names = {record["id"], *record.get("aliases", ())}
        affected = [n for n in packages if affects(record, n, packages[n])]
        if not affected or names & seen:  # the same one is recorded by several authorities
            continue
        seen |= names
        reason = next((reasons[n] for n in sorted(names) if n in reasons), None)
        num_new += reason is None
        verdict = "NOT ACCEPTED" if reason is None else f"accepted: {reason}"
        for name in affected:
            print(f"{name} {packages[name]}: {', '.join(sorted(names))}: {verdict}")
    for unused in sorted(reasons.keys() - seen):
        print(f"{unused} of {arguments.accepted.name} concerns nothing here.")
    print(f"{len(packages)} packages, {num_records} records: {num_new} not accepted.")
    if not packages or not num_records:
        print("There is nothing to compare.", file=sys.stderr)
        return 2
    return int(num_new > 0)


def installed() -> dict[str, str]:
    """Version of each installed package."""
    return {canonicalize_name(d.metadata["Name"]): d.version for d in distributions()}


def listed(sbom: Path) -> dict[str, str]:
    """Version of each Python package of a bill of materials."""
    components = json.loads(sbom.read_text())["components"]
    return {
        canonicalize_name(c["name"]): c["version"]
        for c in components
        if c.get("purl", "").startswith("pkg:pypi/")
    }


def records(database: Path | None) -> Iterator[dict[str, Any]]:
    """Records of a zip file or a directory, or of OSV itself; withdrawn ones are left out."""
    if database is not None and database.is_dir():
        files = sorted(path for path in database.rglob("*") if path.suffix in (".json", ".yaml"))
        contents = ((path.suffix, path.read_bytes()) for path in files)
    else:
        if database is None:
            with urllib.request.urlopen(DATABASE, timeout=60) as answer:
                archive = zipfile.ZipFile(io.BytesIO(answer.read()))
        else:
            archive = zipfile.ZipFile(database)
        contents = ((Path(n).suffix, archive.read(n)) for n in sorted(archive.namelist()))
    for suffix, content in contents:
        if suffix not in (".json", ".yaml"):
            continue
        record = json.loads(content) if suffix == ".json" else yaml.safe_load(content)
        if isinstance(record, dict) and "id" in record and "withdrawn" not in record:
            yield record


def affects(record: dict[str, Any], name: str, version: str) -> bool:
    """Whether a record is about this version of a package of PyPI, of any build such as +cpu."""
    public = Version(Version(version).public)
    for affected in record.get("affected", ()):
        package = affected.get("package", {})
        if package.get("ecosystem") != "PyPI" or canonicalize_name(package["name"]) != name:
            continue
        if any(_version(text) == public for text in affected.get("versions", ())):
            return True
        ranges = (r for r in affected.get("ranges", ()) if r["type"] == "ECOSYSTEM")
        if any(_within(r["events"], public) for r in ranges):
            return True
    return False


def _within(events: list[dict[str, str]], version: Version) -> bool:
    """Evaluate a range of the OSV schema: its events in the order of their versions."""
    is_within = False
    for kind, at in sorted(((k, v) for event in events for k, v in event.items()), key=_order):
        limit = _version(at)
        if limit is None:
            continue
        if kind == "introduced" and version >= limit:
            is_within = True
        elif (kind == "fixed" and version >= limit) or (
            kind == "last_affected" and version > limit
        ):
            is_within = False
    return is_within


def _order(event: tuple[str, str]) -> tuple[Version, bool]:
    kind, at = event
    return _version(at) or Version("0"), kind == "introduced"


def _version(text: str) -> Version | None:
    """Return a version, None for one of the time before versions had a grammar."""
    try:
        return Version(text)
    except InvalidVersion:
        return None


if __name__ == "__main__":
    sys.exit(main())
