"""Settings that must stand before Merlin, and with it dask, is first imported.

Every module that uses NVTabular or the Merlin dataloader imports this one above them.
"""

import importlib
import importlib.util
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress


def _prepare() -> None:
    if "dask" in sys.modules:
        import dask

        dask.config.set({"dataframe.query-planning": False, "dataframe.convert-string": False})
        if "dask_expr" in sys.modules:
            raise ImportError(
                "dask was imported with its query planner before `pipeline`. Import `pipeline` "
                "first, or set DASK_DATAFRAME__QUERY_PLANNING=False in the environment."
            )
    warnings.filterwarnings("ignore", message="The legacy Dask DataFrame implementation")
    warnings.filterwarnings("ignore", module=r"(merlin|nvtabular|dask|distributed)\b")
    logging.getLogger("merlin").setLevel(logging.CRITICAL)  # it logs what it raises as well
    _complete_cudf()


def _complete_cudf() -> None:
    """cuDF 24.12 lacks one name that merlin-core imports where it sees a GPU.

    Merlin calls it for hive-partitioned reads alone, which this project does not do.
    """
    if importlib.util.find_spec("cudf") is None:
        return
    from dask.distributed.diagnostics import nvml

    if nvml.device_get_count() == 0:
        return
    column = importlib.import_module("cudf.core.column")
    if not hasattr(column, "build_categorical_column"):

        def build_categorical_column(*_args: object, **_kwargs: object) -> None:
            raise NotImplementedError("hive-partitioned Parquet is not read through cuDF")

        column.build_categorical_column = build_categorical_column  # type: ignore[attr-defined]


_prepare()


def begin_import(module: str) -> Callable[[], None]:
    """Import one that needs NVTabular, which takes a second, in a thread beside what follows.

    Call what is returned before it, or a part of it, is imported again, which then may give an
    error: two threads in one circle of modules would wait for each other. With cuDF it stays with
    the thread that uses the GPU.
    """

    def import_it() -> None:
        with suppress(Exception):
            importlib.import_module(module)

    if importlib.util.find_spec("cudf") is not None:
        return lambda: None
    thread = threading.Thread(target=import_it, name="import")
    thread.start()
    return thread.join


def leave_out_unused() -> None:
    """Keep Merlin and dask from importing what a process of preprocessing needs for nothing.

    Merlin can turn columns into tensors, and imports all that could be asked for: two seconds and
    half a gigabyte. Dask imports another Fourier transform where there is one.
    """
    for name in ("torch", "tensorflow", "tritonclient", "scipy.fftpack"):
        # importing it then fails
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def has_cudf() -> bool:
    """Whether NVTabular and the dataloader run on a GPU here: a device and cuDF are there."""
    from merlin.core.compat import HAS_GPU, cudf

    return bool(HAS_GPU and cudf is not None)
