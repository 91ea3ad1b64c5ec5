"""cuDF is mended where it is installed with a device, and only where it has the fault."""

import importlib.machinery
import sys
from types import ModuleType
from typing import Any

import pytest
from dask.distributed.diagnostics import nvml

from pipeline.core import merlin


class Column:
    """Stand-in of cuDF's ColumnBase."""


class Series:
    """Stand-in of the Series of cuDF 24.12."""

    def __init__(self, data: object = None, name: str | None = None) -> None:
        if isinstance(data, Column):
            raise TypeError("Use cudf.Series._from_column for constructing a Series")
        self.data, self.name = data, name

    @classmethod
    def _from_column(cls, column: Column) -> "Series":
        series = cls.__new__(cls)
        series.data, series.name = column, None
        return series


class EarlierSeries:
    """Stand-in of a Series that takes a column itself."""

    def __init__(self, data: object = None) -> None:
        self.data = data


def install_cudf(monkeypatch: pytest.MonkeyPatch, series: type, **column: Any) -> dict[str, Any]:
    """Put stand-ins of cuDF's modules into `sys.modules` and return them by name."""
    series = type("Series", (series,), {"__init__": series.__init__})
    contents: dict[str, dict[str, Any]] = {
        "cudf": {"Series": series, "__path__": []},
        "cudf.core": {"__path__": []},
        "cudf.core.column": {"ColumnBase": Column, **column},
        "cudf._lib": {"__path__": []},
        "cudf._lib.groupby": {"_STRING_AGGS": {"COUNT", "SIZE"}},
    }
    modules = {}
    for name, values in contents.items():
        modules[name] = module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        for attribute, value in values.items():
            setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, name, module)
    return modules


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "device_get_count", lambda: 1)


@pytest.mark.usefixtures("one_device")
def test_faults_of_cudf_are_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    cudf = install_cudf(monkeypatch, Series)
    column = Column()
    with pytest.raises(TypeError, match="_from_column"):
        cudf["cudf"].Series(column)
    merlin._complete_cudf()
    assert cudf["cudf"].Series(column).data.data is column
    assert cudf["cudf"].Series([1, 2], name="price").name == "price"
    assert cudf["cudf"].Series().data is None
    allowed = cudf["cudf._lib.groupby"]._STRING_AGGS
    assert allowed == {"COUNT", "SIZE", "size"}
    with pytest.raises(NotImplementedError, match="hive-partitioned"):
        cudf["cudf.core.column"].build_categorical_column(column)


@pytest.mark.usefixtures("one_device")
def test_series_is_wrapped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cudf = install_cudf(monkeypatch, Series)["cudf"]
    merlin._complete_cudf()
    construct = cudf.Series.__init__
    merlin._complete_cudf()
    assert cudf.Series.__init__ is construct


@pytest.mark.usefixtures("one_device")
def test_cudf_without_the_faults_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    build = object()
    cudf = install_cudf(monkeypatch, EarlierSeries, build_categorical_column=build)
    del cudf["cudf._lib.groupby"]._STRING_AGGS
    construct = cudf["cudf"].Series.__init__
    merlin._complete_cudf()
    assert cudf["cudf"].Series.__init__ is construct
    assert cudf["cudf.core.column"].build_categorical_column is build
    assert not hasattr(cudf["cudf._lib.groupby"], "_STRING_AGGS")


@pytest.mark.usefixtures("one_device")
def test_cudf_without_the_module_of_groupby_is_mended_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cudf = install_cudf(monkeypatch, Series)["cudf"]
    monkeypatch.delitem(sys.modules, "cudf._lib.groupby")
    merlin._complete_cudf()
    assert isinstance(cudf.Series(Column()), cudf.Series)


def test_cudf_without_a_device_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "device_get_count", lambda: 0)
    cudf = install_cudf(monkeypatch, Series)
    construct = cudf["cudf"].Series.__init__
    merlin._complete_cudf()
    assert cudf["cudf"].Series.__init__ is construct
    allowed = cudf["cudf._lib.groupby"]._STRING_AGGS
    assert allowed == {"COUNT", "SIZE"}
