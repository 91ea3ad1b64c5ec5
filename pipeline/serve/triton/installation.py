"""Triton as the `nvidia-pytriton` wheel carries it, made ready in a temporary directory."""

import ctypes
import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from pipeline.core.errors import ServingError


def locate_package() -> Path:
    """Directory of the installed `pytriton`, which is not imported: that takes seconds."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise ServingError(
            "package nvidia-pytriton, which carries the Triton server, is not installed in"
            f" {sys.prefix}; run `uv sync`"
        )
    return Path(spec.submodule_search_locations[0])


def build_backends(package: Path, scratch: Path) -> Path:
    """A backend directory in `scratch`: Triton's Python backend, and our "pytorch" beside it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = package / "tritonserver" / "python_backend_stubs"
    stub = stubs / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise ServingError(
            f"nvidia-pytriton has no stub for Python {version}; it has some for"
            f" {', '.join(sorted(path.name for path in stubs.glob('*')))}"
        )
    if shlex.quote(str(scratch)) != str(scratch):
        raise ServingError(
            f"the temporary directory {scratch} has a character that a shell would read; set TMPDIR"
        )
    backends = scratch / "backends"
    python = backends / "python"
    shutil.copytree(package / "tritonserver" / "backends" / "python", python)
    # A copy, never a link: Triton changes the mode of a stub that fails, and other environments
    # may share the file. The copy gets its mode anew, for the original may have lost it that way.
    copied = python / stub.name
    shutil.copyfile(stub, copied)
    copied.chmod(0o755)
    ours = Path(__file__).parent / "backends" / "pytorch"
    shutil.copytree(ours, backends / ours.name, ignore=shutil.ignore_patterns("__pycache__"))
    return backends


def build_python(scratch: Path) -> Path:
    """A virtual environment in `scratch` for the stubs, which look for `python3` on PATH.

    They ignore PYTHON* variables, so it is here that they are kept from writing a __pycache__ into
    the model repository, which model control "poll" would take for a new model. They find what is
    installed beside us, but not this project: its models must not come to depend on it.
    """
    root = scratch / "python"
    executable = root / "bin" / "python3"
    executable.parent.mkdir(parents=True)
    base = Path(sys.base_exec_prefix) / "bin"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    executable.symlink_to(base / version)
    (root / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    site = root / "lib" / version / "site-packages"
    site.mkdir(parents=True)
    installed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    lines = ["import sys; sys.dont_write_bytecode = True", *installed]
    (site / "installed.pth").write_text("\n".join(lines) + "\n")
    return executable.parent


def check_shared_python() -> None:
    """ServingError where this Python is not there as a library, which the stubs are linked to.

    Without it they end at once, and Triton waits for them until its time is over.
    """
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    if any((Path(folder) / name).exists() for folder in _python_libraries()):
        return
    try:
        ctypes.CDLL(name)
    except OSError:
        raise ServingError(
            f"{name}, the shared library of Python that Triton's Python models need, is not here;"
            f" install it (Debian and Ubuntu: `apt install {name.split('.so')[0]}`), or use the"
            " Python that uv brings along"
        ) from None


def _python_libraries() -> list[str]:
    return [str(sysconfig.get_config_var("LIBDIR")), str(Path(sys.base_prefix) / "lib")]


def environment(package: Path, python: Path) -> dict[str, str]:
    libraries = [
        str(package.parent / "nvidia_pytriton.libs"),
        # Else the stub finds another libpython and misses modules of the standard library.
        *_python_libraries(),
        os.environ.get("LD_LIBRARY_PATH", ""),
    ]
    return {
        # instances share the machine; here and below the caller's own value wins
        "OMP_NUM_THREADS": "1",
        # scores of a catalogue are large: memory that is given back comes again page by page
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
        "MALLOC_TOP_PAD_": str(32 << 20),
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, dict.fromkeys(libraries))),
        "PATH": f"{python}:{os.environ.get('PATH', os.defpath)}",
    }
