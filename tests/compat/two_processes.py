"""A program of Transformers4Rec's guide to several GPUs, for `torchrun`; prints its metrics."""

import json
import os
import sys

import torch

from pipeline import compat as tr


def main(path: str, folder: str) -> None:
    torch.manual_seed(0)
    schema = tr.data.tabular_sequence_testing_data.schema
    inputs = tr.TabularSequenceFeatures.from_schema(
        schema, max_sequence_length=20, d_output=16, masking="clm"
    )
    config = tr.GPT2Config.build(16, 2, 1, 20, dropout=0.0)
    arguments = tr.T4RecTrainingArguments(
        output_dir=folder,
        num_train_epochs=2,
        per_device_train_batch_size=32 // int(os.environ.get("WORLD_SIZE", "1")),
        learning_rate=0.01,
        use_cpu=True,
        report_to=[],
    )
    trainer = tr.Trainer(
        config.to_torch_model(inputs, tr.NextItemPredictionTask()),
        arguments,
        schema=schema,
        train_dataset_or_path=path,
        eval_dataset_or_path=path,
        compute_metrics=True,
    )
    for _ in range(2):
        trainer.reset_lr_scheduler()
        trainer.train()
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(trainer.evaluate()))


if __name__ == "__main__":
    main(*sys.argv[1:])
