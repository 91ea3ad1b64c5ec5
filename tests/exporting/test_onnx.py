"""ONNX export: the file in onnxruntime equals the model at shapes that were not traced."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from pipeline import Run, export
from pipeline import model as tr
from pipeline.cli.main import app
from pipeline.core.artifact import read_manifest
from pipeline.core.errors import ConfigError, PipelineError
from pipeline.data.directory import Data
from pipeline.exporting import onnx_model
from pipeline.exporting.onnx_model import OnnxModel, arguments, compare_onnx, write_onnx
from pipeline.exporting.torchscript import InferenceModel, example_request
from pipeline.model.model_files import load_model
from pipeline.serve.runtime.request_encoder import Encoder
from tests.conftest import Shop
from tests.model.test_invariants import CASES, SCHEMA, L, V, make_model, sessions

FAST = {("gpt2", "clm"), ("xlnet", "mlm"), ("longformer", "mlm"), ("reformer", "clm"),
        ("gru", "clm"), ("hstu", "clm"), ("core", "clm"), ("llama", "clm")}  # fmt: skip
"""One of each family; the others take a second or more each."""


@pytest.mark.parametrize(
    ("architecture", "masking"),
    [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_file_equals_the_model_at_shapes_not_traced(
    architecture: str, masking: str, tmp_path: Path
) -> None:
    model = make_model(architecture, masking)
    served = InferenceModel(model, model.inputs.feature_names, {"device"})
    exported = OnnxModel(served, max_k=V, filter_seen=False)
    path = tmp_path / "model.onnx"
    write_onnx(served, exported, L, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    cases = (([1, 3, L], L, 7), ([2 * L, 1, L + 1], 2 * L, V), ([2, 1], 2, 1), ([3], 6, 5),
             ([1 + i % L for i in range(33)], L, 20), ([1], 1, 3))  # fmt: skip
    for seed, (lengths, width, k) in enumerate(cases):
        batch = sessions(lengths, seed, width)
        values = {**batch.features, "device": batch.features["device"].unsqueeze(1)}
        feed = {name: values[name].numpy() for name in served.names}
        items, scores, queries = session.run(None, feed | {"k": np.array([k])})
        with torch.no_grad():
            expected = model(batch)
            best = model.top_k(batch, min(k, V - 3)).scores
            embeddings = model.session_embeddings(batch)
        assert items.dtype == np.int64
        assert items.shape == scores.shape == (len(lengths), min(k, V - 3))
        size = max(1.0, float(best.abs().max()))  # scores over a temperature are above 10
        assert np.abs(scores - best.numpy()).max() / size < 1e-4
        # lists may differ where scores tie; then each item has the score of its position
        of_items = expected.gather(1, torch.from_numpy(items)).numpy()
        assert np.abs(scores - of_items).max() / size < 1e-4
        assert all(len(set(row)) == len(row) for row in items.tolist()), "no item twice"
        assert np.abs(queries - embeddings.numpy()).max() / size < 1e-4


def test_lists_leave_out_items_of_the_session_where_the_recipe_says_so(tmp_path: Path) -> None:
    model = make_model("gru", "clm")
    served = InferenceModel(model, model.inputs.feature_names, {"device"})
    exported = OnnxModel(served, max_k=V, filter_seen=True)
    write_onnx(served, exported, L, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    features = example_request(served, 3 * L, 4, seed=1).features
    inputs = arguments(exported, features, V)
    feed = {t.name: v.numpy() for t, v in zip(exported.inputs, inputs, strict=True)}
    items, scores, _ = session.run(None, feed)
    for row, seen in enumerate(feed["item_id"]):
        assert not set(items[row][items[row] > 0]) & set(seen), "items before the newest L too"
        expected = V - 3 - len({item for item in seen.tolist() if item >= 3})
        assert (items[row] > 0).sum() == np.isfinite(scores[row]).sum() == expected


def test_targets_are_outputs_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA.select_by_name(["item_id", "device"]),
        max_sequence_length=L,
        masking="clm",
        d_output=16,
    )
    block = tr.TransformerBlock(tr.GRUConfig.build(16, 1), masking=inputs.masking)
    body = tr.SequentialBlock(inputs, block)
    for ranks, lists in ((True, 3), (False, 0)):
        purchase = tr.BinaryClassificationTask("brand", task_name="purchase", summary_type="last")
        tasks = [purchase, tr.RegressionTask("price", task_name="later price")]
        if ranks:
            tasks.insert(0, tr.NextItemPredictionTask())
        model = tr.Model(tr.Head(body, tasks)).eval()
        served = InferenceModel(model, model.inputs.feature_names, {"device"})
        exported = OnnxModel(served, max_k=10)
        write_onnx(served, exported, L, tmp_path / "model.onnx")
        difference = compare_onnx(served, exported, tmp_path / "model.onnx", L)
        assert difference is not None
        assert difference < 1e-4
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        names = [tensor.name for tensor in session.get_outputs()]
        assert names[lists:] == ["purchase", "later_price"]
        assert ("k" in [tensor.name for tensor in session.get_inputs()]) == ranks


def test_file_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    served = {}
    for name in ("gru", "lstm"):
        model = make_model(name, "clm")
        served[name] = InferenceModel(model, model.inputs.feature_names, {"device"})
    write_onnx(served["gru"], OnnxModel(served["gru"], max_k=9), L, path)
    with pytest.raises(PipelineError, match="differs from the model by"):
        compare_onnx(served["lstm"], OnnxModel(served["lstm"], max_k=9), path, L)


def test_operator_without_onnx_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class LogGamma(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden * torch.lgamma(hidden.abs() + 1)

    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=L, masking="clm", d_output=16
    )
    block = tr.TransformerBlock(tr.GRUConfig.build(16, 1), masking=inputs.masking)
    body = tr.SequentialBlock(inputs, block, LogGamma())
    model = tr.Model(tr.Head(body, tr.NextItemPredictionTask())).eval()
    served = InferenceModel(model, model.inputs.feature_names, {"device"})
    with pytest.raises(PipelineError, match=r"cannot be written as ONNX: .*lgamma") as caught:
        write_onnx(served, OnnxModel(served, max_k=9), L, tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_command_writes_the_file_with_its_tables(shop: Shop, tmp_path: Path) -> None:
    """Raw ids to raw ids by the files alone, as a client of another language goes."""
    out = tmp_path / "onnx"
    arguments = ["export", str(shop.run), "--format", "onnx", "--out", str(out), "--max-k", "30"]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    facts = read_manifest(out, "onnx")
    assert facts == json.loads(done.stdout)
    assert facts["largest_difference"] < 1e-4
    assert "is up to date" in CliRunner().invoke(app, [*arguments, "--if-needed"]).output
    session = onnxruntime.InferenceSession(out / "model.onnx")
    assert [tensor.name for tensor in session.get_inputs()] == [t["name"] for t in facts["inputs"]]

    encoder = Encoder(out / "encoder")
    ids = encoder.items[[4, 0, 9]]
    feed = {}
    for tensor in facts["inputs"][:-1]:
        width = 3 if tensor["axes"][1] == "positions" else 1
        feed[tensor["name"]] = np.ones((1, width), tensor["type"])
    feed["item_id"] = encoder.lookups["item_id"](ids)[np.newaxis].astype(np.int64)
    items, scores, _ = session.run(None, feed | {"k": np.array([50])})
    assert items.shape == (1, 30), "--max-k is the most"
    model = load_model(shop.run)
    features = {name: torch.from_numpy(values) for name, values in feed.items()}
    batch = tr.SessionBatch.from_features(features, "item_id")
    with torch.no_grad():
        assert np.allclose(scores, model.top_k(batch, 30).scores.numpy(), atol=1e-4)
    assert set(encoder.items[items[0] - 3]) <= set(encoder.items)


def test_model_in_memory_is_written_and_a_program_refused(shop: Shop, tmp_path: Path) -> None:
    model, data = load_model(shop.run), Data.open(shop.data)
    out = export(model, data=data, out=tmp_path / "onnx", format="onnx")
    assert read_manifest(out, "onnx")["largest_difference"] < 1e-4
    run = Run.save(model, data, tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a program, which cannot be written as ONNX"):
        export(run, out=tmp_path / "other", format="onnx")
    assert not (tmp_path / "other").exists()


def test_options_of_a_server_are_refused(shop: Shop, tmp_path: Path) -> None:
    for option in ({"scoring": "int8"}, {"name": "other"}, {"max_batch": 9}):
        with pytest.raises(ConfigError, match="option of a Triton repository"):
            export(shop.run, out=tmp_path / "onnx", format="onnx", **option)  # type: ignore[arg-type]


def test_each_missing_package_has_its_line(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in ("onnx", "onnxruntime"):
        find_spec = onnx_model.importlib.util.find_spec
        with monkeypatch.context() as patched:
            patched.setattr(
                onnx_model.importlib.util,
                "find_spec",
                lambda name, missing=missing, find=find_spec: (
                    None if name == missing else find(name)
                ),
            )
            done = CliRunner().invoke(
                app, ["export", str(shop.run), "--format", "onnx", "--out", str(tmp_path / "onnx")]
            )
        if missing == "onnx":
            assert isinstance(done.exception, ConfigError)
            assert "pip install 'pipeline[onnx]'" in str(done.exception)
        else:
            assert "was not compared with the model" in done.output
            assert read_manifest(tmp_path / "onnx", "onnx")["largest_difference"] is None
