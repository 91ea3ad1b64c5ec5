"""Artifacts whose manifest fits, and whose state is what this project never writes."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.artifact import read_json, write_json
from pipeline.core.errors import ArtifactError
from pipeline.core.manifest import MANIFEST, write_manifest
from pipeline.data.directory import Data
from pipeline.model.run import Run
from tests.conftest import Shop

Change = Callable[[Path], None]


def state(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Change fitted.json."""

    def change(path: Path) -> None:
        values = read_json(path / "fitted" / "fitted.json")
        edit(values)
        text = json.dumps(values)  # NaN too, which write_json refuses
        (path / "fitted" / "fitted.json").write_text(text)

    return change


def text(name: str, content: str) -> Change:
    return lambda path: (path / name).write_text(content) and None


def table(name: str, edit: Callable[[pa.Table], pa.Table]) -> Change:
    def change(path: Path) -> None:
        file = next(path.glob(name))
        pq.write_table(edit(pq.read_table(file)), file)

    return change


def column(name: str, values: Callable[[pa.ChunkedArray], Any]) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.column_names.index(name), name, values(t[name]))


def weights(edit: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def change(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        edit(tensors)
        save_file(tensors, path / "model.safetensors")

    return change


def model(edit: Callable[[dict[str, Any]], object]) -> Change:
    def change(path: Path) -> None:
        values = read_json(path / "model.json")
        edit(values)
        write_json(path / "model.json", values)

    return change


def first_weight(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = value

    return edit


def rows(number: int) -> Callable[[dict[str, Any]], None]:
    def edit(values: dict[str, Any]) -> None:
        values["schema"][0]["num_rows"] = number

    return edit


DEEP = '{"a": ' * 100_000
ITEMS = "fitted/categories/item_id.parquet"
STATES: dict[str, Change] = {
    "deep JSON": text("fitted/fitted.json", DEEP),
    "a list for an object": text("fitted/fitted.json", "[1, 2]"),
    "a number for a recipe": state(lambda s: s.update(recipe=3)),
    "NaN as a mean": state(lambda s: s["continuous"]["price"].update(mean=float("nan"))),
    "text as a mean": state(lambda s: s["continuous"]["price"].update(mean="much")),
    "a deviation below 0": state(lambda s: s["continuous"]["price"].update(deviation=-1)),
    "a further statistic": state(lambda s: s["continuous"]["price"].update(more=1)),
    "an unknown type": state(lambda s: s.update(session_type="bytes")),
    "text as a time": state(lambda s: s.update(learned_until="now")),
    "a path as a feature": state(lambda s: s["categorical"].update({"../../x": "string"})),
    "no items": state(lambda s: s["categorical"].pop("item_id")),
    "a null id": table(ITEMS, column("item_id", lambda c: pa.array([None, *c.to_pylist()[1:]]))),
    "an id twice": table(
        ITEMS, column("item_id", lambda c: pa.array([c[1].as_py(), *c.to_pylist()[1:]]))
    ),
    "ids of another type": table(
        ITEMS, column("item_id", lambda c: pa.array(np.full(len(c), 1.5)))
    ),
    "another column": table(ITEMS, lambda t: t.rename_columns(["other"])),
    "no Parquet": text(ITEMS, "PAR1"),
}
MODELS: dict[str, Change] = {
    "deep JSON": text("model.json", DEEP),
    "a schema of 2e9 rows": model(rows(2_000_000_000)),
    "a schema of -1 rows": model(rows(-1)),
    "a width of 1e6": model(lambda m: m["model"].update(d_model=1_000_000, n_head=1)),
    "a length of 1e12": model(lambda m: m.update(max_sequence_length=10**12)),
    "vectors of 1e12": model(lambda m: m.update(vectors=[[10**6, 10**6]])),
    "half precision": weights(lambda w: w.update({k: v.half() for k, v in w.items()})),
    "one NaN": weights(first_weight(float("nan"))),
    "one infinity": weights(first_weight(float("inf"))),
    "a weight less": weights(lambda w: w.pop(next(iter(w)))),
    "no weights": text("model.safetensors", "x"),
}
TRAIN = "sessions/train/*.parquet"
SESSIONS: dict[str, Change] = {
    "an index out of range": table(
        TRAIN, column("item_id", lambda c: pa.array([[10**6] * len(s) for s in c.to_pylist()]))
    ),
    "an index below 0": table(
        TRAIN, column("item_id", lambda c: pa.array([[-1] * len(s) for s in c.to_pylist()]))
    ),
    "lists of other lengths": table(
        TRAIN, column("category", lambda c: pa.array([s[:-1] for s in c.to_pylist()]))
    ),
    "null in a list": table(
        TRAIN, column("category", lambda c: pa.array([[None] * len(s) for s in c.to_pylist()]))
    ),
    "numbers as indices": table(
        TRAIN, column("item_id", lambda c: pa.array([[3.5] * len(s) for s in c.to_pylist()]))
    ),
}


def hostile(source: Path, folder: Path, kind: str, change: Change) -> Path:
    path = folder / "artifact"
    shutil.copytree(source, path)
    change(path)
    (path / MANIFEST).unlink()
    facts = read_json(source / MANIFEST)["facts"]
    write_manifest(path, kind, facts, None)
    return path


def refusal(act: Callable[[], object]) -> str:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArtifactError) as caught:
        act()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert used < 500_000  # kB
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_a_state_that_was_never_written_is_refused(
    shop: Shop, tmp_path: Path, change: Change
) -> None:
    path = hostile(shop.data, tmp_path, "data", change)
    assert str(path) in refusal(lambda: Data.open(path).fitted)


@pytest.mark.parametrize("change", MODELS.values(), ids=MODELS)
def test_a_model_that_was_never_written_is_refused(
    shop: Shop, tmp_path: Path, change: Change
) -> None:
    path = hostile(shop.run, tmp_path, "run", change)
    assert str(path) in refusal(lambda: Run.open(path).model)


@pytest.mark.parametrize("change", SESSIONS.values(), ids=SESSIONS)
def test_sessions_that_were_never_written_are_refused(
    shop: Shop, tmp_path: Path, change: Change
) -> None:
    path = hostile(shop.data, tmp_path, "data", change)
    assert str(path) in refusal(lambda: Data.open(path).check_sessions("train", "valid", "test"))
    Data.open(shop.data).check_sessions("train", "valid", "test")


@pytest.mark.parametrize("content", [DEEP, '{"feature": ' + "[" * 50_000, "feature {" * 50_000])
def test_a_schema_that_is_nested_without_end_is_refused(
    shop: Shop, tmp_path: Path, content: str
) -> None:
    path = hostile(shop.data, tmp_path, "data", text("schema.pbtxt", content))
    refusal(lambda: Data.open(path).schema)
