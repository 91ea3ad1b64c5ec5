"""Metrics of tasks beside the next item equal scikit-learn's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from pipeline.evaluation.target_metrics import TargetPredictions, target_metrics


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 300), levels=st.integers(1, 40))
def test_binary_metrics_are_those_of_scikit_learn(seed: int, count: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    # few levels, so that many predictions tie; 0 and 1 among them
    predictions = (random.integers(0, levels + 1, count) / levels).astype(np.float32)
    targets = random.integers(0, 2, count).astype(np.float32)
    values = target_metrics(TargetPredictions("binary", predictions, targets))
    exact = predictions.astype(np.float64)
    if len(set(targets.tolist())) == 2:
        assert values["auc"] == pytest.approx(sklearn.roc_auc_score(targets, exact))
    else:
        assert math.isnan(values["auc"])
    clipped = exact.clip(1e-15, 1 - 1e-15)
    assert values["log_loss"] == pytest.approx(sklearn.log_loss(targets, clipped, labels=[0, 1]))
    positive = exact >= 0.5
    precision = sklearn.precision_score(targets, positive, zero_division=np.nan)
    recall = sklearn.recall_score(targets, positive, zero_division=np.nan)
    assert values["precision"] == pytest.approx(precision, nan_ok=True)
    assert values["recall"] == pytest.approx(recall, nan_ok=True)
    assert 0 <= values["calibration_error"] <= 1


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 300))
def test_metrics_of_numbers_are_those_of_scikit_learn(seed: int, count: int) -> None:
    random = np.random.default_rng(seed)
    predictions, targets = random.normal(0, 100, (2, count)).astype(np.float32)
    values = target_metrics(TargetPredictions("regression", predictions, targets))
    arrays = targets.astype(np.float64), predictions.astype(np.float64)
    assert values["rmse"] == pytest.approx(sklearn.root_mean_squared_error(*arrays))
    assert values["mae"] == pytest.approx(sklearn.mean_absolute_error(*arrays))


def test_calibration_compares_mean_probability_and_share_of_positives() -> None:
    predictions = np.array([0.1, 0.1, 0.9, 0.9], np.float32)
    targets = np.array([0, 0, 1, 0], np.float32)
    values = target_metrics(TargetPredictions("binary", predictions, targets))
    assert values["calibration"] == pytest.approx(2.0)
    # bins of 0.1 and of 0.9: distances 0.1 and 0.4, two targets each
    assert values["calibration_error"] == pytest.approx(0.25)


def test_nothing_to_predict_has_no_metric() -> None:
    empty = np.empty(0, np.float32)
    for kind in ("binary", "regression"):
        values = target_metrics(TargetPredictions(kind, empty, empty))  # type: ignore[arg-type]
        assert all(math.isnan(value) for value in values.values())
