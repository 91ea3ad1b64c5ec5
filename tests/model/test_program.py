"""Programs of models: each architecture is written as one, and read again."""

from pathlib import Path

import pytest
import torch

from pipeline import model as tr
from pipeline.model.architectures import find_architecture
from pipeline.model.program import read_program, write_program
from pipeline.recipe.choices import ARCHITECTURES

SCHEMA = tr.Schema((tr.ColumnSchema.create_categorical("item_id", 27, tags=["item_id"]),))
LENGTHS = ([8, 8], [8], [3, 5, 8, 2], [1, 1, 1])


def batch(lengths: list[int]) -> tr.SessionBatch:
    generator = torch.Generator().manual_seed(len(lengths))
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    items = torch.randint(3, 30, inside.shape, generator=generator) * inside
    return tr.SessionBatch({"item_id": items}, torch.tensor(lengths))


@pytest.mark.parametrize(
    ("architecture", "masking"),
    [(name, masking) for name, maskings in ARCHITECTURES.items() for masking in maskings],
)
def test_program_of_every_architecture_is_read_and_scores_alike(
    architecture: str, masking: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    inputs = tr.TabularSequenceFeatures.from_schema(
        SCHEMA, max_sequence_length=8, d_output=16, masking=masking
    )
    shape = {"model_type": "llama" if masking == "clm" else "modernbert"}
    config = find_architecture(architecture)(
        d_model=16,
        n_head=2,
        total_seq_length=9,
        **(shape if architecture == "huggingface" else {}),
    )
    model = config.to_torch_model(inputs, tr.NextItemPredictionTask()).eval()
    description = write_program(tmp_path, model, [batch(lengths) for lengths in LENGTHS])
    program = read_program(tmp_path, description)
    for lengths in LENGTHS:
        queries, expected = (m.session_embeddings(batch(lengths)) for m in (program, model))
        assert torch.allclose(queries, expected, atol=1e-5)
