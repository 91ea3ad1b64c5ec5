"""Ranking metrics under the names of the original, by hand and against torchmetrics."""

import numpy as np
import pytest
import torch
import torchmetrics.functional.retrieval as reference

from pipeline import compat as tr
from pipeline.core.errors import ConfigError
from pipeline.evaluation.metrics import ranking_metrics

SCORES = torch.tensor([[0.1, 0.9, 0.5, 0.3], [0.8, 0.1, 0.2, 0.7]])
LABELS = torch.tensor([2, 3])
"""Rank 2 in both rows."""


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (tr.RecallAt, [0.0, 1.0]),
        (tr.PrecisionAt, [0.0, 0.5]),
        (tr.MRRAt, [0.0, 0.5]),
        (tr.AvgPrecisionAt, [0.0, 0.5]),
        (tr.NDCGAt, [0.0, 1 / np.log2(3)]),
        (tr.DCGAt, [0.0, 1 / np.log2(3)]),
    ],
)
def test_target_at_rank_two_has_the_value_worked_out_by_hand(
    metric: type[tr.RankingMetric], expected: list[float]
) -> None:
    by_index = metric(top_ks=[1, 2], labels_onehot=True)
    assert by_index(SCORES, LABELS).tolist() == pytest.approx(expected)
    one_hot = torch.nn.functional.one_hot(LABELS, 4)
    assert metric(top_ks=[1, 2])(SCORES, one_hot).tolist() == pytest.approx(expected)


def test_batches_add_up_to_the_metrics_of_all_rows() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(300, 40), torch.randint(0, 40, (300,))
    ranks = (scores >= scores.gather(1, labels[:, None])).sum(1).numpy()
    ours = ranking_metrics(ranks, (5, 10))
    for metric, name in ((tr.NDCGAt, "ndcg"), (tr.RecallAt, "recall"), (tr.MRRAt, "mrr")):
        summed = metric(top_ks=[5, 10], labels_onehot=True)
        for rows in torch.arange(300).split(70):
            summed.update(scores[rows], labels[rows])
        assert summed.compute().tolist() == pytest.approx([ours[f"{name}@5"], ours[f"{name}@10"]])
        summed.reset()
        assert summed.compute().isnan().all()


def test_metrics_equal_torchmetrics() -> None:
    torch.manual_seed(1)
    scores, labels = torch.randn(50, 20), torch.randint(0, 20, (50,))
    truths = torch.nn.functional.one_hot(labels, 20).bool()
    for metric, function in (
        (tr.NDCGAt, reference.retrieval_normalized_dcg),
        (tr.MRRAt, reference.retrieval_reciprocal_rank),
        (tr.PrecisionAt, reference.retrieval_precision),
        (tr.RecallAt, reference.retrieval_recall),
        (tr.AvgPrecisionAt, reference.retrieval_average_precision),
    ):
        rows = [function(s, t, top_k=5) for s, t in zip(scores, truths, strict=True)]
        value = metric(top_ks=[5], labels_onehot=True)(scores, labels)
        assert float(value) == pytest.approx(float(torch.stack(rows).mean()), abs=1e-6)


def test_one_row_has_a_recall() -> None:
    metric = tr.RecallAt(top_ks=[2], labels_onehot=True)
    assert metric(SCORES[:1], LABELS[:1]).tolist() == [1.0]


def test_several_true_items_in_a_row_are_refused() -> None:
    with pytest.raises(ConfigError, match="one true item per row"):
        tr.NDCGAt([2])(SCORES, torch.ones(2, 4))
    with pytest.raises(ConfigError, match="lengths of lists"):
        tr.NDCGAt([])
    with pytest.raises(ConfigError, match="metrics such as NDCGAt"):
        tr.NextItemPredictionTask(metrics=["ndcg"])


def test_registry_has_each_metric_by_its_names() -> None:
    assert tr.ranking_metrics_registry["ndcg_at"] is tr.NDCGAt
    assert tr.ranking_metrics_registry["recall"] is tr.ranking_metric.RecallAt
