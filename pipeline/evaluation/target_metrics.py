"""Metrics of target tasks: binary targets and numbers.

Binary targets, of predicted probabilities p and labels y:

auc: probability that a positive has a higher p than a negative, ties count half (the area under
the ROC curve; Hanley and McNeil 1982). log_loss: mean of -log p of positives and -log(1 - p) of
negatives, with p clipped to 1e-15 from 0 and 1. precision and recall: of the prediction p >=
`threshold`. calibration: mean p divided by the share of positives, 1 where they agree.
calibration_error: mean distance of mean p and share of positives over ten bins of p of equal width,
weighted by their sizes (ECE; Naeini et al., AAAI 2015).

Numbers: rmse, the root of the mean squared error, and mae, the mean absolute error, in the units of
the log.

`target_values` expresses the metrics as means over targets, for the intervals and paired
differences of `pipeline.evaluation.metrics`: each target has its share of the metric, linearized if
the metric is not a mean. For auc these are the structural components of DeLong, DeLong and
Clarke-Pearson (1988), clustered by session as in Obuchowski, "Nonparametric analysis of clustered
ROC curve data" (1997). calibration and calibration_error have no such values: the best value of
calibration is 1, and calibration_error is not smooth at its best value.

Shape letter: N targets.
"""

from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pipeline.evaluation.metrics import weighted

TargetKind = Literal["binary", "regression"]
THRESHOLD = 0.5
_BINS = 10
_SMALLEST = 1e-15


class TargetPredictions(NamedTuple):
    """Predictions of one task with their targets, in the order of sessions and positions."""

    kind: TargetKind
    predictions: NDArray[Any]
    """(N,) float32 probabilities, or numbers in the units of the log."""
    targets: NDArray[Any]
    """(N,) 0 or 1, or numbers in the units of the log."""
    sessions: NDArray[Any] | None = None
    """(N,) session of each target, ascending; None if not needed."""

    def constant(self, prediction: float) -> Self:
        """The targets with a constant prediction."""
        return self._replace(predictions=np.full_like(self.predictions, prediction))


def target_metrics(values: TargetPredictions, threshold: float = THRESHOLD) -> dict[str, float]:
    """Metrics of a task by name; NaN for an undefined metric, such as any metric without a
    target."""
    predictions = values.predictions.astype(np.float64)
    targets = values.targets.astype(np.float64)
    if values.kind == "binary":
        return _binary_metrics(predictions, targets, threshold)
    errors = predictions - targets
    return {"rmse": float(np.sqrt(_mean(errors**2))), "mae": _mean(np.abs(errors))}


def target_values(
    values: TargetPredictions, threshold: float = THRESHOLD
) -> dict[str, NDArray[Any]]:
    """(N,) values by metric, whose mean is the metric; NaN for an undefined metric."""
    predictions = values.predictions.astype(np.float64)
    targets = values.targets.astype(np.float64)
    if values.kind == "regression":
        errors = predictions - targets
        rmse = np.sqrt(_mean(errors**2))
        # linearization of the square root
        spread = (errors**2 - rmse**2) / (2 * rmse) if rmse else np.zeros_like(errors)
        return {"rmse": rmse + spread, "mae": np.abs(errors)}
    positive, predicted = targets == 1, predictions >= threshold
    return {
        "auc": _auc_values(predictions, positive),
        "log_loss": _log_losses(predictions, positive),
        "precision": weighted(positive, predicted),
        "recall": weighted(predicted, positive),
    }


def _auc_values(predictions: NDArray[Any], positive: NDArray[Any]) -> NDArray[Any]:
    """(N,) share of the negatives below a positive, and of the positives above a negative."""
    above = np.empty(len(predictions))
    ranks = rankdata(predictions)
    for members in (positive, ~positive):
        others = max(len(members) - members.sum(), 1)
        above[members] = (ranks[members] - rankdata(predictions[members])) / others
    above[~positive] = 1 - above[~positive]
    positives, negatives = weighted(above, positive), weighted(above, ~positive)
    return positives + negatives - (positives.mean() if len(positives) else 0)


def _log_losses(predictions: NDArray[Any], positive: NDArray[Any]) -> NDArray[Any]:
    kept = predictions.clip(_SMALLEST, 1 - _SMALLEST)
    return -np.log(np.where(positive, kept, 1 - kept))


def _binary_metrics(
    predictions: NDArray[Any], targets: NDArray[Any], threshold: float
) -> dict[str, float]:
    positive = targets == 1
    predicted = predictions >= threshold
    hits = float((predicted & positive).sum())
    return {
        "auc": _auc(predictions, positive),
        "log_loss": _mean(_log_losses(predictions, positive)),
        "precision": _ratio(hits, predicted.sum()),
        "recall": _ratio(hits, positive.sum()),
        "calibration": _ratio(_mean(predictions), _mean(targets)),
        "calibration_error": _calibration_error(predictions, targets),
    }


def _auc(predictions: NDArray[Any], positive: NDArray[Any]) -> float:
    """Mann and Whitney's U of the positives, as a share of all pairs."""
    count = float(positive.sum())
    pairs = count * (len(positive) - count)
    if not pairs:
        return float("nan")
    ranks = float(rankdata(predictions)[positive].sum())
    return (ranks - count * (count + 1) / 2) / pairs


def _calibration_error(predictions: NDArray[Any], targets: NDArray[Any]) -> float:
    bins = np.minimum((predictions * _BINS).astype(np.int64), _BINS - 1)
    differences = np.bincount(bins, predictions - targets, minlength=_BINS)
    return _ratio(float(np.abs(differences).sum()), len(predictions))


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _ratio(part: float, whole: Any) -> float:
    return part / float(whole) if whole else float("nan")
