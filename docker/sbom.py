"""Print a bill of materials of this environment or image: CycloneDX 1.6, JSON.

    python docker/sbom.py > sbom.cdx.json

Components are the Python distributions of the interpreter that runs it, the Triton that
nvidia-pytriton carries, and, where there is dpkg, the packages of Debian. The same image gives the
same bytes.
"""

import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from typing import Any

TRITON_VERSIONS = {"0.7.0": "2.51.0"}
"""Version of the Triton in each version of nvidia-pytriton, whose metadata does not have it."""


def python_components() -> list[dict[str, Any]]:
    """Python distributions, one of each name: the first on the path is the one that is imported."""
    installed: dict[str, Distribution] = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        installed.setdefault(name, distribution)
    components = []
    for name, distribution in sorted(installed.items()):
        component = _component(name, distribution.version, f"pkg:pypi/{name}")
        if expression := distribution.metadata.get("License-Expression"):
            component["licenses"] = [{"expression": expression}]
        components.append(component)
        if name == "nvidia-pytriton":
            version = TRITON_VERSIONS[distribution.version]
            triton = _component("tritonserver", version, "pkg:generic/nvidia/tritonserver")
            triton["cpe"] = f"cpe:2.3:a:nvidia:triton_inference_server:{version}:*:*:*:*:*:*:*"
            components.append(triton)
    return components


def debian_components() -> list[dict[str, Any]]:
    """Packages of Debian, none where there is no dpkg."""
    if (dpkg := shutil.which("dpkg-query")) is None:
        return []
    form = "${Package}\t${Version}\t${Architecture}\n"
    lines = subprocess.run([dpkg, "-W", "-f", form], check=True, capture_output=True, text=True)
    components = []
    for line in sorted(lines.stdout.splitlines()):
        name, version, architecture = line.split("\t")
        component = _component(name, version, f"pkg:deb/debian/{name}")
        component["purl"] += f"?arch={architecture}"
        component["bom-ref"] = component["purl"]
        components.append(component)
    return components


def _component(name: str, version: str, package_url: str) -> dict[str, Any]:
    # characters of Debian's versions that a package URL writes as %XX
    escaped = version.replace("+", "%2B").replace(":", "%3A").replace("~", "%7E")
    purl = f"{package_url}@{escaped}"
    kind = "application" if name == "tritonserver" else "library"
    return {"type": kind, "bom-ref": purl, "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    bom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "session-pipeline"}},
        "components": python_components() + debian_components(),
    }
    json.dump(bom, sys.stdout, indent=1)
    sys.stdout.write("\n")
