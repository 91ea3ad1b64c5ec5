"""The public functions of `pipeline`."""

from typing import Any

import pytest

from pipeline import Data, Run, evaluate, preprocess
from pipeline.core.errors import ConfigError
from tests.conftest import ROOT, SESSION, Shop


@pytest.fixture(scope="module")
def run(shop: Shop) -> Any:
    return Run.open(shop.run)


def test_public_names_are_functions_and_classes_beside_the_packages() -> None:
    import pipeline.preprocessing.run
    import pipeline.training.run

    assert all(getattr(pipeline, name) is not None for name in pipeline.__all__)
    for name in ("preprocess", "train", "evaluate", "predict", "export"):
        assert callable(getattr(pipeline, name))


def test_run_recommends_for_one_and_for_several_sessions(run: Any) -> None:
    one = run.recommend(SESSION, k=3)
    assert one.columns.tolist() == ["session", "rank", "item_id", "score"]
    assert one["rank"].tolist() == [1, 2, 3]
    several = run.recommend([SESSION, SESSION], k=3)
    assert several["item_id"].tolist() == one["item_id"].tolist() * 2
    assert several["session"].tolist() == [0] * 3 + [1] * 3


def test_run_recommends_with_the_filters_of_predict(run: Any) -> None:
    best = run.recommend(SESSION, k=3)["item_id"].tolist()
    assert best[0] not in run.recommend(SESSION, k=3, exclude=best[:1])["item_id"].tolist()
    only = run.recommend(SESSION, k=3, candidates=best[1:], filter_seen=False)
    assert sorted(only["item_id"]) == sorted(best[1:])


def test_evaluation_gives_a_frame_of_models_by_metrics(shop: Shop, run: Any) -> None:
    frame = evaluate(run, str(shop.data), cutoffs=[20]).to_frame()
    assert frame.index[0] == run.name
    assert {"recall@20", "mrr@20"} <= {*frame.columns}


@pytest.mark.parametrize("cutoffs", [[0], [], 10])
def test_wrong_cutoffs_are_config_errors(shop: Shop, cutoffs: Any) -> None:
    with pytest.raises(ConfigError, match="cutoffs is"):
        evaluate(shop.run, shop.data, cutoffs=cutoffs)


def test_swapped_arguments_are_config_errors(shop: Shop, run: Any) -> None:
    with pytest.raises(ConfigError, match="Expected a run or its path, got Data"):
        evaluate(Data.open(shop.data), run)  # type: ignore[arg-type]


def test_a_recipe_may_be_a_path(shop: Shop, tmp_path: Any) -> None:
    data = preprocess(str(ROOT / "configs" / "demo.yaml"), shop.clicks, out=tmp_path / "data")
    assert data.parts == ["train", "valid", "test"]
