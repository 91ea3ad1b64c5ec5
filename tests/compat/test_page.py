"""Programs of docs/tutorials/move-from-transformers4rec.md and of the original's documentation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import compat as tr
from pipeline.compat.data import session_frame
from tests.conftest import ROOT
from tests.test_docs import blocks, run

pytestmark = pytest.mark.train
PAGE = (ROOT / "docs" / "tutorials" / "move-from-transformers4rec.md").read_text(encoding="utf-8")
BEFORE, AFTER = blocks(PAGE, "python")
SCHEMA = tr.Schema(
    (
        tr.ColumnSchema.create_categorical("item_id", 40, tags=["item_id"], max_length=20),
        tr.ColumnSchema.create_categorical("category", 6, max_length=20),
        tr.ColumnSchema.create_continuous("price", max_length=20),
        tr.ColumnSchema.create_continuous("weekday_sin", max_length=20),
        tr.ColumnSchema(name="day_index"),
    )
)


def lines(program: str, *, imports: bool) -> list[str]:
    every = program.splitlines()
    return [line for line in every if line.startswith(("import ", "from ")) == imports]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with a schema and sessions of three days, the current one."""
    (tmp_path / "schema.pbtxt").write_text(SCHEMA.to_proto_text())
    frame = session_frame(SCHEMA, 240)
    frame["day_index"] = np.arange(240) % 3 + 1
    frame["ts/first"] = np.arange(240)
    tr.save_time_based_splits(frame, tmp_path / "days", partition_col="day_index")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_program_differs_in_its_imports_alone() -> None:
    assert lines(BEFORE, imports=False) == lines(AFTER, imports=False)
    assert any("transformers4rec" in line for line in lines(BEFORE, imports=True))
    assert "transformers4rec" not in AFTER


def test_program_runs_after_its_imports_are_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    namespace = run(AFTER, {})
    assert capsys.readouterr().out.count("'eval_/next-item/ndcg_at_20'") == 2
    model, loaded = namespace["model"], tr.Model.load(folder / "saved")
    batch: Any = namespace["features"]
    with torch.no_grad():
        assert torch.equal(model(batch)[:, 3:], loaded(batch)[:, 3:])  # type: ignore[operator]


def body_of(schema: tr.Schema, masking: str) -> tr.SequentialBlock:
    """The building blocks of the original's page on model architectures."""
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema,
        embedding_dim_default=128,
        max_sequence_length=20,
        d_output=100,
        aggregation="concat",
        masking=masking,
    )
    config = tr.XLNetConfig.build(d_model=64, n_head=4, n_layer=2, total_seq_length=20)
    return tr.SequentialBlock(
        inputs, tr.MLPBlock([64]), tr.TransformerBlock(config, masking=inputs.masking)
    )


def test_programs_on_architectures_and_training_run(folder: Path) -> None:
    torch.manual_seed(0)
    schema = tr.Schema().from_proto_text("schema.pbtxt")
    body = body_of(schema, "clm")
    head = tr.Head(body, tr.NextItemPredictionTask(weight_tying=True), inputs=body.inputs)
    model = tr.Model(head)
    paths = ["days/1/train.parquet"]
    loader = tr.MerlinDataLoader.from_schema(
        schema, paths_or_dataset=paths, batch_size=16, drop_last=True, shuffle=True
    )
    trainer = tr.Trainer(
        model=model,
        args=tr.T4RecTrainingArguments(
            output_dir="./tmp",
            avg_session_length=20,
            num_train_epochs=3,
            learning_rate=0.002,
            report_to=[],
            no_cuda=True,
        ),
        train_dataloader=loader,
        eval_dataloader=loader,
        compute_metrics=True,
    )
    before = trainer.evaluate()
    trainer.train()
    assert trainer.evaluate()["eval_/loss"] < before["eval_/loss"]
    for index in (1, 2):
        trainer.train_dataset = [f"days/{index}/train.parquet"]
        trainer.reset_lr_scheduler()
        trainer.train()
        trainer.eval_dataset = f"days/{index + 1}/*lid.parquet"
        metrics = trainer.evaluate(metric_key_prefix="eval")
        trainer.wipe_memory()
    assert metrics["eval_/next-item/recall_at_20"] > 0.6  # 20 of 40 items by chance
    assert trainer.state.global_step > 3 * 6


def test_quick_tour_runs(folder: Path) -> None:
    torch.manual_seed(0)
    schema = tr.Schema().from_proto_text("schema.pbtxt")
    input_module = tr.TabularSequenceFeatures.from_schema(
        schema,
        max_sequence_length=20,
        continuous_projection=64,
        aggregation="concat",
        masking="causal",
    )
    config = tr.XLNetConfig.build(d_model=64, n_head=4, n_layer=2, total_seq_length=20)
    model = config.to_torch_model(input_module, tr.NextItemPredictionTask())
    loader = tr.MerlinDataLoader.from_schema(schema, "days/1/train.parquet", 16)
    losses = model.fit(loader, num_epochs=2)
    assert losses[1] < losses[0]
    assert isinstance(model, tr.Model)
