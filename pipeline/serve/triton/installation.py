"""Triton of the `nvidia-pytriton` wheel, prepared in a temporary directory."""

import ctypes
import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from pipeline.core.errors import ServingError

_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_LIBRARY_FOLDERS = [str(sysconfig.get_config_var("LIBDIR")), str(Path(sys.base_prefix) / "lib")]


def locate_package() -> Path:
    """Return the directory of `pytriton`, without importing it, which takes seconds."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServingError(
            "package nvidia-pytriton, which carries the Triton server, is not installed in"
            f" {sys.prefix}; run `uv sync`"
        )
    return Path(spec.submodule_search_locations[0])


def build_backends(package: Path, scratch: Path) -> Path:
    """Create a backend directory in `scratch`: Triton's Python and our "pytorch" backend."""
    stubs = package / "tritonserver" / "python_backend_stubs"
    stub = stubs / _VERSION / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServingError(
            f"nvidia-pytriton has no stub for Python {_VERSION}; it has some for"
            f" {', '.join(sorted(path.name for path in stubs.glob('*')))}"
        )
    if shlex.quote(str(scratch)) != str(scratch):
        raise ServingError(
            f"the temporary directory {scratch} has a character that a shell would read; set TMPDIR"
        )
    backends = scratch / "backends"
    python = backends / "python"
    shutil.copytree(package / "tritonserver" / "backends" / "python", python)
    # A copy, not a link: Triton changes the mode of a stub that fails, and other environments may
    # share the file. The copy gets its mode again, as the original may have lost it this way.
    shutil.copyfile(stub, python / stub.name)
    (python / stub.name).chmod(0o755)
    ours = Path(__file__).parent / "backends" / "pytorch"
    shutil.copytree(ours, backends / ours.name, ignore=shutil.ignore_patterns("__pycache__"))
    # the backend checks each program before loading, and keeps its heap for large score tensors
    for name in ("program_check.py", "program_operators.txt", "allocator.py"):
        shutil.copyfile(Path(__file__).parents[2] / "core" / name, backends / ours.name / name)
    return backends


def build_python(scratch: Path) -> Path:
    """Create a virtual environment in `scratch` for the stubs; return the folder of its `python3`.

    Stubs look for `python3` on PATH and ignore PYTHON* variables, so only this environment keeps
    them from writing a __pycache__ into the model repository, which Triton would load as a new
    model. They see the packages installed beside this project, but not the project itself, as
    exported models must not depend on it.
    """
    root = scratch / "python"
    executable = root / "bin" / "python3"
    executable.parent.mkdir(parents=True)
    base = Path(sys.base_exec_prefix) / "bin"
    executable.symlink_to(base / f"python{_VERSION}")
    (root / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    site = root / "lib" / f"python{_VERSION}" / "site-packages"
    site.mkdir(parents=True)
    installed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    lines = ["import sys; sys.dont_write_bytecode = True", *installed]
    (site / "installed.pth").write_text("\n".join(lines) + "\n")
    return executable.parent


def check_shared_python() -> None:
    """ServingError without the shared library of this Python, to which the stubs are linked.

    Without it they exit at once, and Triton waits for them until its time-out.
    """
    name = f"libpython{_VERSION}.so.1.0"
    if any((Path(folder) / name).exists() for folder in _LIBRARY_FOLDERS):
        return
    try:
        ctypes.CDLL(name)
    except OSError:
        raise ServingError(
            f"{name}, the shared library of Python that Triton's Python models need, is not"
            f" installed; install it (Debian and Ubuntu: `apt install libpython{_VERSION}`), or use"
            " the Python that uv brings along"
        ) from None


def environment(package: Path, python: Path) -> dict[str, str]:
    """Return the environment variables of Triton; `python` is the folder of `build_python`."""
    libraries = [
        str(package.parent / "nvidia_pytriton.libs"),
        # otherwise the stub loads another libpython and misses standard modules
        *_LIBRARY_FOLDERS,
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    return {
        # instances share the machine; the caller's own value takes precedence
        "OMP_NUM_THREADS": "1",
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, dict.fromkeys(libraries))),
        "PATH": f"{python}:{os.environ.get('PATH', os.defpath)}",
    }
