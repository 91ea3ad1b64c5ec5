"""ETL, training by time windows and serving as in the notebooks of Transformers4Rec.

    python examples/from_transformers4rec.py FOLDER [--log clicks.parquet] [--serve]

1. A log of clicks becomes sessions by a stock NVTabular workflow.
2. The sessions are divided by day, and each day into train, valid and test.
3. An XLNet with masked language modeling is trained day by day, and evaluated on the next day.
4. The model is saved, loaded and exported as a Triton model repository.
5. A Triton server answers a request in raw ids (`--serve`).

Steps 1 to 3 are a program of Transformers4Rec with other imports.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline import compat as tr

LONGEST = 20
"""Newest interactions of a session that the model reads."""


@dataclass
class Sessions:
    """Output of the ETL."""

    folder: Path
    """Folder of `days/DAY/train.parquet` and so on, and of `schema.pbtxt`."""
    schema: tr.Schema
    workflow: Any
    """The fitted NVTabular workflow."""
    categories: Path
    """Folder of `unique.COLUMN.parquet`, which hold the raw value of each index."""
    days: range
    prices: tuple[float, float]
    """Mean and deviation of the logarithm of the price."""


def read_log(path: Path) -> pd.DataFrame:
    """Clicks with the columns session_id, item_id, category, price and timestamp."""
    log = pd.read_parquet(path).rename(columns={"session": "session_id", "product": "item_id"})
    log["timestamp"] = pd.to_datetime(log.pop("time"), utc=True).dt.tz_localize(None)
    return log[["session_id", "item_id", "category", "price", "timestamp"]]


def etl(log: pd.DataFrame, folder: Path) -> Sessions:
    """Make sessions by stock NVTabular operators, and write them by day."""
    import pipeline.core.merlin  # noqa: F401  (settings before NVTabular is imported)
    import nvtabular as nvt  # isort: skip
    from merlin.schema import Tags
    from nvtabular import ops

    first_day = log["timestamp"].min().normalize()
    normalize = ops.Normalize()
    indices = ["item_id", "category"] >> ops.Categorify(out_path=str(folder))
    price = ["price"] >> ops.LogOp() >> normalize
    day = ["timestamp"] >> ops.LambdaOp(lambda times: (times - first_day).dt.days + 1)
    day = day >> ops.Rename(name="day_index")
    sessions = (indices + price + day + ["session_id", "timestamp"]) >> ops.Groupby(
        groupby_cols=["session_id"],
        sort_cols=["timestamp"],
        aggs={
            "item_id": ["list", "count"],
            "category": ["list"],
            "price": ["list"],
            "day_index": ["first"],
            "timestamp": ["first"],
        },
    )
    lists = sessions["item_id_list", "category_list", "price_list"] >> ops.ListSlice(-LONGEST)
    lists = lists >> ops.Rename(f=lambda name: name.removesuffix("_list"))
    features = (
        (lists["item_id"] >> ops.TagAsItemID())
        + (lists["category"] >> ops.AddMetadata(tags=[Tags.CATEGORICAL]))
        + (lists["price"] >> ops.AddMetadata(tags=[Tags.CONTINUOUS]))
    )
    others = sessions["session_id", "item_id_count", "day_index_first", "timestamp_first"]
    output = (features + others) >> ops.Filter(lambda frame: frame["item_id_count"] >= 2)

    workflow = nvt.Workflow(output)
    data = workflow.fit_transform(nvt.Dataset(log, cpu=True))
    schema = tr.Schema.from_merlin(workflow.output_schema).select_by_name(
        ["item_id", "category", "price"]
    )
    (folder / "schema.pbtxt").write_text(schema.to_proto_text())
    tr.save_time_based_splits(
        data, folder / "days", partition_col="day_index_first", timestamp_col="timestamp_first"
    )
    return Sessions(
        folder=folder,
        schema=schema,
        workflow=workflow,
        categories=folder / "categories",
        days=range(1, 1 + max(int(day.name) for day in (folder / "days").iterdir())),
        prices=(float(normalize.means["price"]), float(normalize.stds["price"])),
    )


def build_model(schema: tr.Schema, d_model: int = 64) -> tr.Model:
    """XLNet with masked language modeling."""
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema,
        max_sequence_length=LONGEST,
        continuous_projection=d_model,
        aggregation="concat",
        d_output=d_model,
        masking="mlm",
    )
    metrics = [tr.NDCGAt(top_ks=[10, 20], labels_onehot=True), tr.RecallAt(top_ks=[10, 20])]
    task = tr.NextItemPredictionTask(weight_tying=True, metrics=metrics)
    config = tr.XLNetConfig.build(
        d_model=d_model, n_head=4, n_layer=2, total_seq_length=LONGEST, dropout=0.1
    )
    return config.to_torch_model(inputs, task)


def train(model: tr.Model, sessions: Sessions, epochs: int = 3) -> dict[str, list[float]]:
    """Train day by day; return metrics of each next day."""
    arguments = tr.T4RecTrainingArguments(
        output_dir=str(sessions.folder / "checkpoints"),
        data_loader_engine="merlin",
        max_sequence_length=LONGEST,
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        learning_rate=0.003,
        lr_scheduler_type="cosine",
        learning_rate_num_cosine_cycles_by_epoch=0.5 / epochs,
        report_to=[],
    )
    trainer = tr.Trainer(model=model, args=arguments, schema=sessions.schema, compute_metrics=True)
    days = sessions.days
    return tr.fit_and_evaluate(
        trainer,
        start_time_index=days.start,
        end_time_index=days.stop - 2,
        input_dir=sessions.folder / "days",
    )


def export(model: tr.Model, sessions: Sessions, out: Path) -> Path:
    """Write the model and the encoder of raw requests as a Triton model repository."""
    from pipeline.core.artifact import new_artifact
    from pipeline.data.fitted import Fitted, Standardization
    from pipeline.exporting import torchscript
    from pipeline.exporting.options import ExportOptions
    from pipeline.exporting.repository import write_repository
    from pipeline.recipe.preprocess import Preprocess

    recipe = {
        "session": "session_id",
        "item": "item_id",
        "max_sequence_length": LONGEST,
        "features": [
            {"name": "category", "kind": "categorical"},
            {"name": "price", "kind": "continuous", "log": True},
        ],
    }
    mean, deviation = sessions.prices
    fitted = Fitted(
        recipe=Preprocess.from_dict(recipe, "the example"),
        session_type="string",
        timestamp_type=None,
        vocabularies={name: vocabulary(sessions, name) for name in ("item_id", "category")},
        standardizations={"price": Standardization(mean=mean, deviation=deviation)},
    )
    served = torchscript.InferenceModel(model.cpu().eval(), model.inputs.feature_names, set())
    program = torchscript.trace(served, LONGEST)
    torchscript.prove_parity(served, program, LONGEST)
    num_items = len(fitted.item.values)
    options = ExportOptions(default_k=min(10, num_items), max_k=min(100, num_items))
    facts = {"name": options.name, "catalogue_items": num_items}
    with new_artifact(out, "repository", facts) as directory:
        write_repository(directory, fitted, served, program, options, 1)
    return out


def vocabulary(sessions: Sessions, column: str) -> Any:
    """Raw values of a column in the order of their indices, as NVTabular wrote them."""
    from pipeline.data.fitted import Vocabulary

    unique = pd.read_parquet(sessions.categories / f"unique.{column}.parquet")
    return Vocabulary(type="string", values=pa.array(unique[column].tolist(), pa.string()))


@contextmanager
def served(repository: Path) -> Iterator[Any]:
    """Client of a Triton server of the repository, which ends with the block."""
    from pipeline import Client
    from pipeline.serve.run import running_server
    from pipeline.serve.triton.ports import free_ports

    with (
        running_server(repository, ports=free_ports()) as server,
        Client(f"http://{server.http_url}") as client,
    ):
        yield client


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all steps and print their results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="new folder for everything that is written")
    parser.add_argument("--log", type=Path, help="clicks as Parquet; by default synthetic ones")
    parser.add_argument("--serve", action="store_true", help="start Triton and send a request")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True)
    if options.log is None:
        from pipeline.preprocessing.synthetic import synthesize

        options.log = options.folder / "clicks.parquet"
        synthesize(options.log, sessions=2_000, items=200, days=4)

    log = read_log(options.log)
    sessions = etl(log, options.folder)
    model = build_model(sessions.schema)
    for name, values in train(model, sessions).items():
        print(f"{name}: {np.mean(values):.3f}, by day {[round(value, 3) for value in values]}")
    model.save(options.folder / "model")
    repository = export(tr.Model.load(options.folder / "model"), sessions, options.folder / "repo")
    print(f"exported to {repository}")
    if options.serve:
        clicks = log[log["session_id"] == log["session_id"].iloc[-1]]
        with served(repository) as client:
            print(client.recommend_frame(clicks, 5).to_string(index=False))


if __name__ == "__main__":
    main()
