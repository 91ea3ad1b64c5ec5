"""Co-visitation vectors that item tables are initialized with."""

import numpy as np
import pytest
import torch

from pipeline.model import ColumnSchema, Schema
from pipeline.model.build import TrainingStatistics, build_model
from pipeline.recipe.model import ModelConfig
from pipeline.training.item_vectors import co_visitation_vectors

SESSIONS = [[3, 4, 3, 5], [4, 5, 3], [6, 7], [7, 8, 6], [8, 6], [9], [2, 9, 2]]
VALUES = np.concatenate([np.array(session) for session in SESSIONS])
OFFSETS = np.concatenate([[0], np.cumsum([len(session) for session in SESSIONS])])
V = 11


def vectors(width: int = 4) -> np.ndarray:
    return co_visitation_vectors(VALUES, OFFSETS, V, width)


def test_items_of_the_same_sessions_have_similar_vectors() -> None:
    cosine = vectors() @ vectors().T
    together = [(3, 4), (3, 5), (6, 7), (7, 8)]
    apart = [(3, 6), (4, 7), (5, 8)]
    assert min(cosine[pair] for pair in together) > 0.5
    assert max(abs(cosine[pair]) for pair in apart) < 1e-3


def test_vectors_have_length_one_and_are_zero_without_a_neighbour() -> None:
    lengths = np.linalg.norm(vectors(), axis=1)
    assert lengths == pytest.approx([0, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0], abs=1e-5)


def test_dimensions_beyond_the_number_of_items_are_zero() -> None:
    wide = vectors(width=40)
    assert wide.shape == (V, 40)
    assert np.isfinite(wide).all()
    assert not wide[:, V:].any()


def test_sessions_of_one_item_give_no_vectors() -> None:
    alone = co_visitation_vectors(np.array([3, 4]), np.array([0, 1, 2]), V, 4)
    assert not alone.any()


def test_table_starts_with_the_vectors_and_random_rows_elsewhere() -> None:
    item = ColumnSchema.create_categorical("item_id", V - 3, tags=["item_id"])
    config = ModelConfig(architecture="core", d_model=4, n_head=1, item_vectors="co-visitation")
    initial = torch.from_numpy(vectors())
    torch.manual_seed(0)
    model = build_model(
        Schema((item,)), config, 5, statistics=TrainingStatistics(item_vectors={4: initial})
    )
    table = model.inputs.item_table.weight
    size = config.embedding_deviation * 4**0.5
    assert torch.allclose(table[3:9], initial[3:9] * size), "as long as random ones are on average"
    assert bool(table[9:].any(1).all())
    assert not bool(table[:3].any()), "reserved rows say nothing"
    assert table.requires_grad
