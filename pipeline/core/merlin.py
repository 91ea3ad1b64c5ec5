"""Settings that must be made before Merlin, and with it dask, is first imported.

Modules that use NVTabular or the Merlin dataloader import this one first.
"""

import functools
import importlib
import importlib.util
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any


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
    """Patch cuDF if it is installed and finds a device."""
    if importlib.util.find_spec("cudf") is None:
        return
    from dask.distributed.diagnostics import nvml

    if nvml.device_get_count() == 0:
        return
    _add_categorical_column(importlib.import_module("cudf.core.column"))
    _pass_columns_to_series(importlib.import_module("cudf"))
    with suppress(ModuleNotFoundError):  # later versions have no such module
        _allow_size_of_text(importlib.import_module("cudf._lib.groupby"))


def _add_categorical_column(column: Any) -> None:
    """Add the one name that merlin-core 23.8 imports on a GPU and that cuDF 24.12 lacks.

    Merlin calls it only for hive-partitioned files, which this project does not read.
    """
    if hasattr(column, "build_categorical_column"):
        return

    def build_categorical_column(*_args: object, **_kwargs: object) -> None:
        raise NotImplementedError("hive-partitioned Parquet is not read through cuDF")

    column.build_categorical_column = build_categorical_column


def _pass_columns_to_series(cudf: Any) -> None:
    """Let `Series(column)` be `Series._from_column(column)`, which cuDF 24.12 asks for.

    merlin-core 23.8 makes the lists of its dataloader by `Series(column)`, and a training ends at
    the first batch with a TypeError. A cuDF without `_from_column` takes a column itself.
    """
    series = cudf.Series
    if not hasattr(series, "_from_column") or getattr(series.__init__, "takes_columns", False):
        return
    column_type = importlib.import_module("cudf.core.column").ColumnBase
    construct = series.__init__

    @functools.wraps(construct)
    def __init__(self: Any, data: Any = None, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        if isinstance(data, column_type):
            data = series._from_column(data)
        construct(self, data, *args, **kwargs)

    __init__.takes_columns = True  # type: ignore[attr-defined]
    series.__init__ = __init__


def _allow_size_of_text(groupby: Any) -> None:
    """Let groups of a text column be counted by the aggregation "size", as Categorify does.

    cuDF 24.12 allows "SIZE" and compares the name as the caller wrote it, so that NVTabular 23.8
    ends with "function is not supported for this dtype: size".
    """
    allowed = getattr(groupby, "_STRING_AGGS", None)
    if allowed is not None:
        allowed.add("size")


_prepare()


def begin_import(module: str) -> Callable[[], None]:
    """Import a module that needs NVTabular, which takes a second, in a background thread.

    Call the returned function, which waits for the thread, before the module or a part of it is
    imported elsewhere: two threads that import the same cycle of modules would deadlock. With cuDF
    nothing is imported, as the thread that uses the GPU must do that.
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
    """Keep Merlin and dask from importing packages that preprocessing does not use.

    Merlin imports every tensor library that it could convert columns to, which takes two seconds
    and half a gigabyte.
    """
    for name in ("torch", "tensorflow", "tritonclient", "scipy.fftpack"):
        # importing a module that is None in sys.modules raises ImportError
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


def has_cudf() -> bool:
    """Whether NVTabular and the dataloader run on a GPU: there are a device and cuDF."""
    if importlib.util.find_spec("cudf") is None:  # Merlin may be on import in another thread
        return False
    from merlin.core.compat import HAS_GPU, cudf

    return bool(HAS_GPU and cudf is not None)
