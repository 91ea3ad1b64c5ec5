"""Members learn from losses of their own and score by the mean of their scores."""

from pathlib import Path

import pytest
import torch

from pipeline.core.errors import ConfigError
from pipeline.model import ColumnSchema, Ensemble, Model, Schema, SessionBatch
from pipeline.model.build import build_model
from pipeline.model.model_files import load_model, save_model
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig

SCHEMA = Schema((ColumnSchema.create_categorical("item_id", 30, tags=["item_id"]),))
CONFIG = ModelConfig(
    architecture="sasrec",
    d_model=8,
    n_head=2,
    normalize=True,
    temperature=0.07,
    members=({}, {"architecture": "core", "d_model": 12, "temperature": 0.1}),
)


def batch(sessions: int = 5, seed: int = 0) -> SessionBatch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 7, (sessions,), generator=generator)
    items = torch.randint(3, 33, (sessions, 6), generator=generator)
    return SessionBatch({"item_id": items * (torch.arange(6) < lengths.unsqueeze(1))}, lengths)


def built(config: ModelConfig = CONFIG, **train: object) -> Model:
    torch.manual_seed(0)
    return build_model(SCHEMA, config, 6, TrainConfig(**train)).eval()


def members(model: Model) -> list[Model]:
    return [Model(head) for head in model.heads]


def test_scores_are_the_mean_of_the_members() -> None:
    model = built()
    assert isinstance(model, Ensemble)
    assert len({id(member.inputs.item_table) for member in members(model)}) == 3
    scores = [member(batch()) for member in members(model)]
    assert not torch.allclose(scores[0][:, 3:], scores[1][:, 3:])
    assert torch.allclose(model(batch()), torch.stack(scores).mean(0), atol=1e-5)
    assert torch.equal(model.predict(batch())["next-item"], model(batch()))
    assert model.predict(batch()).keys() == {"next-item"}


@pytest.mark.parametrize("loss", ["cross-entropy", "sampled-softmax"])
def test_each_member_learns_from_a_loss_of_its_own(loss: str) -> None:
    model = built(loss=loss)
    torch.manual_seed(1)
    whole = model.loss(batch())
    torch.manual_seed(1)
    parts = [member.loss(batch()) for member in members(model)]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 3, abs=1e-5)
    whole.backward()
    assert all(bool(member.inputs.item_table.weight.grad.any()) for member in members(model))


@pytest.mark.parametrize("masking", ["clm", "mlm"])
def test_evaluation_predicts_without_the_last_item(masking: str) -> None:
    changed = {"architecture": "bert", "masking": masking, "members": ({}, {"n_layer": 1})}
    config = CONFIG.model_dump() | (changed if masking == "mlm" else {})
    model = built(ModelConfig.model_validate(config))
    features = batch()
    result = model.at_targets(features)
    scores = model.scores(result.hidden[result.is_last])
    items, lengths = features.features["item_id"].clone(), features.lengths - 1
    items[torch.arange(len(items)), lengths] = 0
    assert torch.allclose(scores, model(SessionBatch({"item_id": items}, lengths)), atol=1e-5)


def test_vectors_give_the_scores_and_the_best_items() -> None:
    model, sessions = built(), batch()
    scores = model(sessions)
    vectors = model.session_embeddings(sessions) @ model.item_embeddings().T
    assert torch.allclose(vectors, scores[:, 3:], atol=1e-5)
    best = model.top_k(sessions, 4, candidates=torch.arange(3, 20))
    expected = scores[:, 3:20].topk(4)
    assert torch.equal(best.items, expected.indices + 3)
    assert torch.allclose(best.scores, expected.values, atol=1e-5)


def test_it_comes_back_from_disk(tmp_path: Path) -> None:
    model = built()
    save_model(tmp_path, model, SCHEMA, CONFIG, 6)
    again = load_model(tmp_path)
    assert isinstance(again, Ensemble)
    assert torch.equal(again(batch()), model(batch()))


def test_members_that_read_differently_are_refused() -> None:
    one, other = (
        build_model(SCHEMA, ModelConfig(architecture="bert", masking=masking), 6)
        for masking in ("clm", "mlm")
    )
    with pytest.raises(ConfigError, match="Two tasks have the same name"):
        Ensemble(*one.heads, *other.heads)
    other.head.next_item_task().task_name = "another"
    with pytest.raises(ConfigError, match="the same masking"):
        Ensemble(*one.heads, *other.heads)


@pytest.mark.parametrize(
    ("member", "expected"),
    [
        ({"architecture": "cor"}, "no architecture 'cor'"),
        ({"masking": "mlm"}, "masking"),
        ({"n_head": 5}, "`members.0`: `n_head` 5 does not divide"),
    ],
)
def test_a_member_that_cannot_be_is_refused(member: dict, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        ModelConfig.from_dict({"architecture": "gpt2", "members": [member]}, "recipe")


def test_a_member_of_another_architecture_has_options_of_its_own() -> None:
    values = {"architecture": "huggingface", "model_type": "llama", "options": {"rms_norm_eps": 1}}
    first, second, third = ModelConfig.from_dict(
        values | {"members": [{}, {"architecture": "sasrec"}]}, "recipe"
    ).each_member
    assert second == first
    assert (third.architecture, third.model_type, third.options) == ("sasrec", None, {})
