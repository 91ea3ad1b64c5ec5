"""Tasks and losses with the arguments of Transformers4Rec."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from pipeline import model as blocks
from pipeline.compat.arguments import expect
from pipeline.compat.construction import Rebuildable
from pipeline.compat.model import Head, Model
from pipeline.compat.ranking_metric import RankingMetric, default_metrics
from pipeline.core.errors import ConfigError

_SUMMARY = "it is last, mean, first, or None for one target per interaction"


class PredictionTask(Rebuildable):
    """Base class of the tasks."""

    def to_head(self, body: blocks.SequentialBlock, inputs: Any = None, **arguments: Any) -> Head:
        """Build a head with this task on `body`."""
        return Head(body, self, inputs=inputs, **arguments)

    def to_model(self, body: blocks.SequentialBlock, inputs: Any = None, **arguments: Any) -> Model:
        """Build a model with this task on `body`."""
        return Model(self.to_head(body, inputs), **arguments)


class NextItemPredictionTask(PredictionTask, blocks.NextItemPredictionTask):
    """Scores of items, see `pipeline.model.NextItemPredictionTask`.

    `metrics` are those of an evaluation, by default NDCG, MAP and Recall at 10 and 20.
    `sampled_softmax` is a softmax over `max_n_samples` negatives. A plain
    `torch.nn.CrossEntropyLoss` as `loss` is computed over chunks of the catalogue.
    """

    def __init__(
        self,
        loss: str | nn.Module = "cross-entropy",
        metrics: Sequence[RankingMetric] | None = None,
        *,
        sampled_softmax: bool = False,
        max_n_samples: int = 100,
        padding_idx: int = 0,
        target_dim: int | None = None,
        hf_format: bool = True,  # noqa: ARG002    (an argument of early versions)
        **options: Any,
    ) -> None:
        expect("padding_idx", padding_idx, 0, because="padding is index 0")
        expect("target_dim", target_dim, None, because="the schema has the size of the catalogue")
        if sampled_softmax:
            loss = "sampled-softmax"
            options.setdefault("num_negatives", max_n_samples)
        elif type(loss) is nn.CrossEntropyLoss:
            loss = _over_catalogue(loss)
        super().__init__(loss=loss, **options)
        self.metrics = _ranking_metrics(metrics)


def _over_catalogue(loss: nn.CrossEntropyLoss) -> nn.Module:
    """The loss in chunks; a loss with class weights is returned unchanged."""
    if loss.weight is not None or loss.reduction != "mean":
        return loss
    return LabelSmoothCrossEntropyLoss(smoothing=loss.label_smoothing, reduction="none")


def _ranking_metrics(metrics: Sequence[RankingMetric] | None) -> list[RankingMetric]:
    """The metrics of an evaluation. ConfigError for anything but ranking metrics."""
    if metrics is None:
        return default_metrics()
    for metric in metrics:
        if not isinstance(metric, RankingMetric):
            raise ConfigError(f"metrics holds {metric!r}, expected metrics such as NDCGAt([10]).")
    return list(metrics)


class BinaryClassificationTask(PredictionTask, blocks.BinaryClassificationTask):
    """Probability of a positive, see `pipeline.model.BinaryClassificationTask`.

    The loss is binary cross-entropy. Metrics are precision, recall and accuracy at 0.5, AUC, log
    loss and calibration.
    """

    def __init__(
        self,
        target_name: str,
        task_name: str | None = None,
        task_block: nn.Module | None = None,
        loss: nn.Module | None = None,
        metrics: Sequence[Any] = (),
        summary_type: Any = "last",
    ) -> None:
        plain = loss is None or type(loss) in (nn.BCELoss, nn.BCEWithLogitsLoss)
        expect("loss", plain, True, because="the loss is binary cross-entropy")
        _check_target(metrics, summary_type)
        super().__init__(
            target_name, task_name=task_name, task_block=task_block, summary_type=summary_type
        )


class RegressionTask(PredictionTask, blocks.RegressionTask):
    """A number, see `pipeline.model.RegressionTask`.

    `loss` is a name or one of torch's MSELoss, L1Loss and HuberLoss. Metrics are mean squared
    error, RMSE and MAE.
    """

    def __init__(
        self,
        target_name: str,
        task_name: str | None = None,
        task_block: nn.Module | None = None,
        loss: Any = "mse",
        metrics: Sequence[Any] = (),
        summary_type: Any = "last",
    ) -> None:
        _check_target(metrics, summary_type)
        names = {nn.MSELoss: "mse", nn.L1Loss: "l1", nn.HuberLoss: "huber"}
        super().__init__(
            target_name,
            loss=names.get(type(loss), loss),
            task_name=task_name,
            task_block=task_block,
            summary_type=summary_type,
        )


def _check_target(metrics: Sequence[Any], summary_type: Any) -> None:
    expect("metrics", len(metrics), 0, because="an evaluation gives those of the kind of the task")
    expect("summary_type", summary_type, "last", "mean", "first", None, because=_SUMMARY)


class LabelSmoothCrossEntropyLoss(Rebuildable, blocks.LabelSmoothCrossEntropyLoss):
    """Cross-entropy over the whole catalogue with label smoothing."""
