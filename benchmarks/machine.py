"""The machine of a measurement: processor, cores, memory, system."""

import os
import platform
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """Return processor, usable cores, memory, load of the last minute, system and Python."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    return {
        "processor": _processor(),
        "cores": len(cores) if cores else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine_lines(result: dict[str, Any], num_cores: int = 1) -> list[str]:
    """Return lines with the machine of a result and the package versions of each side."""
    machine = result["machine"]
    used = "one" if num_cores == 1 else str(num_cores)
    lines = [
        f"{machine['processor']}, {used} of {machine['cores']} cores, load {machine['load']}; "
        f"{machine['system']}, Python {machine['python']}"
    ]
    for side, versions in result.get("versions", {}).items():
        lines.append(f"{side}: " + ", ".join(f"{name} {v}" for name, v in versions.items()))
    return lines
