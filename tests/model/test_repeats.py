"""Lists are ordered by the network's distribution mixed with that of the session's own items."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.evaluation.ranking import rank_in_catalogue
from pipeline.exporting.onnx_model import OnnxModel
from pipeline.exporting.torchscript import InferenceModel, prove_parity, trace
from pipeline.model import ColumnSchema, Model, Schema, SessionBatch
from pipeline.model.build import build_model
from pipeline.model.model_files import load_model, save_model
from pipeline.model.program import read_program, write_program
from pipeline.model.repeats import Repeats
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig

ITEMS, L = 30, 6
SCHEMA = Schema((ColumnSchema.create_categorical("item_id", ITEMS, tags=["item_id"]),))
MEMBERS = ({}, {"architecture": "core", "d_model": 12})
CONFIGS = [{}, {"members": MEMBERS}, {"architecture": "gru", "normalize": False}]


def config(**changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({"d_model": 8, "n_head": 2, "repeats": 0.3} | changes, "recipe")


def built(**changes: Any) -> Model:
    torch.manual_seed(0)
    return build_model(SCHEMA, config(**changes), L).eval()


def batch(sessions: int = 5, width: int = L) -> SessionBatch:
    generator = torch.Generator().manual_seed(sessions)
    lengths = torch.randint(2, width + 1, (sessions,), generator=generator)
    items = torch.randint(2, 9, (sessions, width), generator=generator)
    return SessionBatch({"item_id": items * (torch.arange(width) < lengths[:, None])}, lengths)


def expected_scores(network: Tensor, session: list[int], share: float) -> Tensor:
    """(V - 3,) scores of the network, item indices -> logarithm of the mixture."""
    own = torch.zeros(len(network))
    for distance, item in enumerate(reversed(session), 1):
        if item >= FIRST_ITEM:
            own[item - FIRST_ITEM] += 1 / distance
    return ((1 - share) * network.softmax(0) + share * own / own.sum().clamp(min=1e-9)).log()


@pytest.mark.parametrize("changes", CONFIGS)
def test_scores_are_logarithms_of_the_mixture(changes: dict[str, Any]) -> None:
    model, sessions = built(**changes), batch()
    scores = model(sessions)[:, FIRST_ITEM:]
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(5))
    torch.testing.assert_close(model.predict(sessions)["next-item"], model(sessions))
    torch.testing.assert_close(model.answer(sessions).queries, model.session_queries(sessions))
    network = model.session_embeddings(sessions) @ model.item_embeddings().T
    model.repeats = None
    torch.testing.assert_close(network, model(sessions)[:, FIRST_ITEM:])
    for row, length in enumerate(sessions.lengths.tolist()):
        session = sessions.features["item_id"][row, :length].tolist()
        torch.testing.assert_close(scores[row], expected_scores(network[row], session, 0.3))


def test_the_newest_interactions_count_and_reserved_indices_do_not() -> None:
    repeats = Repeats(0.5, 2)
    items = torch.tensor([[7, 2, 9, 7, 0], [2, 1, 0, 0, 0]])
    own = repeats.of_positions(items, torch.tensor([[1, 2, 4], [1, 2, 2]])).unflatten(2, (2, 2))
    assert own[..., 0].tolist() == [[[7, 7], [2, 7], [7, 9]], [[2, 2], [1, 2], [1, 2]]]
    shares = [[[0.5, 0], [0, 0.5], [1 / 3, 1 / 6]], [[0, 0]] * 3]
    torch.testing.assert_close(own[..., 1], torch.tensor(shares))


@pytest.mark.parametrize("changes", CONFIGS)
def test_evaluation_ranks_as_prediction_without_the_last_item(changes: dict[str, Any]) -> None:
    model, sessions = built(**changes), batch(40, L + 1)
    with torch.no_grad():
        result = model.at_targets(sessions)
        ranked = rank_in_catalogue(
            model.queries(result.hidden[result.is_last]),
            model.items(),
            result.targets[result.is_last] - FIRST_ITEM,
            list_length=ITEMS,
            score=model.score,
        )
        items, lengths = sessions.features["item_id"].clone(), sessions.lengths - 1
        items[torch.arange(len(items)), lengths] = 0
        prefixes = SessionBatch({"item_id": items}, lengths)
        scores = model(prefixes)[:, FIRST_ITEM:]
        best = model.top_k(prefixes, 4, candidates=torch.arange(5, 20), filter_seen=True)
    rows = result.rows[result.is_last]
    own = scores[rows].gather(
        1, (result.targets[result.is_last] - FIRST_ITEM).clamp(min=0)[:, None]
    )
    is_item = result.targets[result.is_last] >= FIRST_ITEM
    counted = (scores[rows] >= own - 1e-6).sum(1)
    assert is_item.sum() > 20
    assert torch.equal(ranked.ranks[is_item], counted[is_item])
    torch.testing.assert_close(
        scores[rows].gather(1, ranked.best), scores[rows].sort(1, descending=True).values
    )
    assert all(
        not {*row.tolist()} & {*session.tolist()}
        for row, session in zip(best.items, items, strict=True)
    )


@pytest.mark.parametrize("changes", CONFIGS)
def test_exported_program_gives_the_lists_of_the_model(changes: dict[str, Any]) -> None:
    served = InferenceModel(built(**changes), ["item_id"], set())
    assert prove_parity(served, trace(served, L), L) < 1e-5


def test_program_of_a_run_ranks_as_the_model(tmp_path: Path) -> None:
    model = built()
    description = write_program(tmp_path, model, [batch(), batch(2, 3)])
    program = read_program(tmp_path, description)
    with torch.no_grad():
        expected, best = model.top_k(batch(9), 7), program.top_k(batch(9), 7)
        torch.testing.assert_close(
            program.session_embeddings(batch(9)), model.session_embeddings(batch(9))
        )
    assert torch.equal(best.items, expected.items)
    torch.testing.assert_close(best.scores, expected.scores)
    assert torch.equal(program.item_embeddings(), model.item_embeddings())


def test_it_comes_back_from_disk_and_learns_as_without_repeats(tmp_path: Path) -> None:
    model = built()
    save_model(tmp_path, model, SCHEMA, config(), L)
    assert torch.equal(load_model(tmp_path)(batch()), model(batch()))
    assert model.loss(batch()) == built(repeats=0).loss(batch())


def test_combinations_that_rank_otherwise_are_refused() -> None:
    target = {"feature": "event", "kind": "binary", "positive": ["buy"], "per_item": True}
    for changes, words in (
        ({"masking": "mlm", "architecture": "bert"}, "`repeats` does not work with `masking: mlm`"),
        ({"targets": [target]}, "`repeats` does not work with `per_item`"),
    ):
        with pytest.raises(ConfigError, match=words):
            config(**changes)
    with pytest.raises(ConfigError, match=r"`repeats` reads .* the whole item table"):
        TrainConfig(item_table="sharded").for_model(config())
    with pytest.raises(ConfigError, match=r"--scoring int8 .*`model.repeats`"):
        InferenceModel(built(), ["item_id"], set(), "int8")
    with pytest.raises(ConfigError, match="cannot be written as ONNX"):
        OnnxModel(InferenceModel(built(), ["item_id"], set()), 10)
    with pytest.raises(ConfigError, match="up to 16,777,216 items"):
        Repeats.of(0.1, 20, 20_000_000)
