"""Counting models against loops and dense formulas, and their settings in a recipe."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.core.columns import FIRST_ITEM
from pipeline.core.errors import ConfigError
from pipeline.model.counting import fitting
from pipeline.model.counting import sessions as counting_sessions
from pipeline.model.counting.fitting import TrainingSessions, fit_scorer, position_weights
from pipeline.model.counting.model import CountingModel
from pipeline.model.counting.scorer import Scorer, first_of_highest, newest_values
from pipeline.model.sealed import SealedInputs
from pipeline.recipe.counting import COUNTING
from pipeline.recipe.model import ModelConfig

V = FIRST_ITEM + 6
SESSIONS = st.lists(st.lists(st.integers(0, V - 1), max_size=7), max_size=9)
DAY = 86_400_000_000


def fitted(name: str, sessions: list[list[int]], **options: Any) -> Scorer:
    """Counting model of sessions that end a day after each other."""
    values = np.array([item for session in sessions for item in session], np.int64)
    offsets = np.cumsum([0, *map(len, sessions)])
    training = TrainingSessions(values, offsets, V, 7, ends=np.arange(len(sessions)) * DAY)
    return fit_scorer(training, COUNTING[name].model_validate(options))


def scores_of(scorer: Scorer, sessions: list[list[int]]) -> np.ndarray:
    batch = torch.zeros(len(sessions), max([1, *map(len, sessions)]), dtype=torch.int64)
    for row, session in enumerate(sessions):
        batch[row, : len(session)] = torch.tensor(session)
    with torch.no_grad():
        return scorer(batch).numpy()


def without_reserved(sessions: list[list[int]]) -> list[list[int]]:
    return [[item - FIRST_ITEM for item in s if item >= FIRST_ITEM] for s in sessions]


def popularity(train: list[list[int]]) -> np.ndarray:
    return np.bincount([i for s in train for i in s], minlength=V - FIRST_ITEM)


@settings(deadline=None)
@given(sessions=SESSIONS, count=st.integers(0, 5))
def test_newest_values_are_the_interactions_from_the_end_each_once(
    sessions: list[list[int]], count: int
) -> None:
    width = max([1, *map(len, sessions)])
    batch = torch.tensor([[*s, *[0] * (width - len(s))] for s in sessions]).reshape(-1, width)
    expected = []
    for session in sessions:
        newest = [item for item in session if item >= FIRST_ITEM][::-1][:count]
        kept = [0 if item in newest[:at] else item for at, item in enumerate(newest)]
        expected.append(kept + [0] * (count - len(kept)))
    assert newest_values(batch, count).tolist() == expected


V_SKNN = st.fixed_dictionaries(
    {
        "k": st.integers(1, 5),
        "sample_size": st.integers(1, 5),
        "weighting": st.sampled_from(["same", "div", "linear", "quadratic", "log"]),
        "weighting_score": st.sampled_from(["same", "div", "linear", "quadratic", "log"]),
        "idf": st.sampled_from([0.0, 1.5]),
    }
)
STAN = st.fixed_dictionaries(
    {
        "weights": st.just("stan"),
        "k": st.integers(1, 5),
        "sample_size": st.integers(1, 5),
        "lambda_spw": st.sampled_from([0.5, 2.0]),
        "lambda_snh": st.sampled_from([1.0, 30.0]),
        "lambda_inh": st.sampled_from([0.5, 2.0]),
    }
)


def neighbours_loop(
    train: list[list[int]], session: list[int], options: dict[str, Any]
) -> np.ndarray:
    """Session-kNN as the papers say it; the factor of all neighbours of a session is left out."""
    is_stan = options.get("weights") == "stan"
    distance = {item: len(session) - at for at, item in enumerate(session)}  # of the newest
    if is_stan:
        weight = {i: math.exp(-(d - 1) / options["lambda_spw"]) for i, d in distance.items()}
    else:
        weights = position_weights(options["weighting"], 7)
        weight = {i: weights[d - 1] for i, d in distance.items()}
    holders = {i: [n for n, s in enumerate(train) if i in s] for i in range(V - FIRST_ITEM)}
    sampled = {i: numbers[-options["sample_size"] :] for i, numbers in holders.items()}
    neighbours = []
    for number, other in enumerate(train):
        common = [item for item in weight if number in sampled[item]]
        if common:
            similarity = sum(weight[item] for item in common) / math.sqrt(len(set(other)))
            if is_stan:
                age = len(train) - 1 - number
                similarity *= math.exp(-age / options["lambda_snh"])
            newest = min(common, key=lambda item: distance[item])
            neighbours.append((np.float32(similarity), number, similarity, newest))
    scores = np.zeros(V - FIRST_ITEM)
    for _, number, similarity, newest in sorted(neighbours, reverse=True)[: options["k"]]:
        place = {item: at for at, item in enumerate(train[number])}  # the newest
        for item, at in place.items():
            if is_stan:
                factor = math.exp(-abs(at - place[newest]) / options["lambda_inh"])
            else:
                factor = position_weights(options["weighting_score"], 7)[distance[newest] - 1]
                factor *= 1 + options["idf"] * math.log(len(train) / len(holders[item]))
            scores[item] += similarity * factor
    return scores


@settings(deadline=None, max_examples=150)
@given(train=SESSIONS, sessions=SESSIONS, options=V_SKNN | STAN)
def test_session_knn_equals_a_loop(
    train: list[list[int]], sessions: list[list[int]], options: dict[str, Any]
) -> None:
    scores = scores_of(fitted("session-knn", train, **options), sessions)
    for row, session in zip(scores, without_reserved(sessions), strict=True):
        expected = popularity(without_reserved(train))
        if session:
            expected = neighbours_loop(without_reserved(train), session, options)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-7)


WEIGHTINGS = st.sampled_from(["last", "same", "div", "linear", "quadratic", "log"])


def sum_of_rows(matrix: np.ndarray, session: list[int], weighting: Any) -> np.ndarray:
    """(V - 3, V - 3) -> weighted sum of the rows of a session's items, each at its newest place."""
    distance = {item: len(session) - at for at, item in enumerate(session)}
    if weighting == "last":
        return matrix[session[-1]]
    weights = position_weights(weighting, 7)
    return sum(weights[d - 1] * matrix[item] for item, d in distance.items())


def dense_incidence(train: list[list[int]]) -> np.ndarray:
    holds = np.zeros((len(train), V - FIRST_ITEM))
    for number, session in enumerate(train):
        holds[number, session] = 1
    return holds


@settings(deadline=None)
@given(
    train=SESSIONS,
    sessions=SESSIONS,
    regularization=st.sampled_from([0.0, 1.0, 20.0]),
    alpha=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    weighting=WEIGHTINGS,
)
def test_item_knn_equals_the_dense_formula(
    train: list[list[int]],
    sessions: list[list[int]],
    regularization: float,
    alpha: float,
    weighting: str,
) -> None:
    options = {"regularization": regularization, "alpha": alpha, "weighting": weighting}
    holds = dense_incidence(without_reserved(train))
    together = holds.T @ holds
    damped = np.maximum(np.diag(together) + regularization, 1)
    similar = together / damped[:, None] ** alpha / damped ** (1 - alpha)
    np.fill_diagonal(similar, 0)
    scores = scores_of(fitted("item-knn", train, **options), sessions)
    for row, session in zip(scores, without_reserved(sessions), strict=True):
        expected = popularity(without_reserved(train))
        if session:
            expected = sum_of_rows(similar, session, weighting)
        np.testing.assert_allclose(row, expected, rtol=1e-5)


@settings(deadline=None)
@given(
    train=SESSIONS,
    sessions=SESSIONS,
    regularization=st.sampled_from([0.5, 20.0, 500.0]),
    weighting=WEIGHTINGS,
    pruning=st.sampled_from([2, 1000]),
    entries=st.sampled_from([1, 13, 1 << 22]),
)
def test_ease_equals_the_dense_formula(
    train: list[list[int]],
    sessions: list[list[int]],
    regularization: float,
    weighting: str,
    pruning: int,
    entries: int,
) -> None:
    holds = dense_incidence(without_reserved(train))
    inverse = np.linalg.inv(holds.T @ holds + regularization * np.eye(V - FIRST_ITEM))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    if pruning == 2:  # where it is clear which are the largest
        sizes = np.sort(np.abs(weights), 1)
        assume((sizes[:, -2] > sizes[:, -3] + 1e-9).all())
        weights = np.where(np.abs(weights) >= sizes[:, -2:-1], weights, 0)
    options = {"regularization": regularization, "weighting": weighting, "pruning": pruning}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting_sessions, "ENTRIES_AT_ONCE", entries)
        scorer = fitted("ease", train, **options)
    scores = scores_of(scorer, sessions)
    for row, session in zip(scores, without_reserved(sessions), strict=True):
        expected = popularity(without_reserved(train))
        if session:
            expected = sum_of_rows(weights, session, weighting)
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-7)


def test_ease_refuses_a_catalogue_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MAX_EASE_ITEMS", V - FIRST_ITEM - 1)
    with pytest.raises(ConfigError, match="the data have 6, expected at most 5"):
        fitted("ease", [[3, 4]])


@settings(deadline=None)
@given(train=SESSIONS, pruning=st.integers(1, 6))
def test_pruned_rules_are_the_best_of_all(train: list[list[int]], pruning: int) -> None:
    singles = [[item] for item in range(FIRST_ITEM, V)]
    for name in ("co-visitation", "sequential-rules", "item-knn"):
        whole = scores_of(fitted(name, train), singles)
        kept = scores_of(fitted(name, train, pruning=pruning), singles)
        for every, some in zip(whole, kept, strict=True):
            best = np.lexsort((np.arange(len(every)), -every))[:pruning]
            expected = np.zeros_like(every)
            expected[best] = every[best]
            assert some.tolist() == expected.tolist()


@settings(deadline=None)
@given(
    rows=st.lists(
        st.lists(
            st.sampled_from([-np.inf, -1.0, 0.0, 1e-6, 1.0, 1.0 + 2**-23, 3e30]),
            min_size=5,
            max_size=5,
        ),
        min_size=1,
        max_size=4,
    ),
    k=st.integers(1, 5),
)
def test_equal_scores_stand_in_the_order_of_their_columns(rows: list[list[float]], k: int) -> None:
    scores = torch.tensor(rows, dtype=torch.float32)
    values, columns = first_of_highest(scores, k)
    expected = scores.sort(descending=True, stable=True)
    finite = ~values.isneginf()
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(columns[finite], expected.indices[:, :k][finite])


@settings(deadline=None)
@given(train=SESSIONS, sessions=SESSIONS.filter(len), name=st.sampled_from([*COUNTING]))
def test_probabilities_are_a_distribution_in_the_order_of_positive_scores(
    train: list[list[int]], sessions: list[list[int]], name: str
) -> None:
    scorer = fitted(name, train)
    model = CountingModel(
        scorer, SealedInputs("item_id", ["item_id"], 7, {"item_id": V}), "item_id"
    )
    scores = torch.from_numpy(scores_of(scorer, sessions))
    shares = model.probabilities(scores)
    assert (shares > 0).all()
    torch.testing.assert_close(shares.sum(1), torch.ones(len(sessions)))
    best = scores.argmax(1, keepdim=True)
    is_clear = scores.gather(1, best) > 2 * scores.sort(1).values[:, -2:-1].clamp(min=0)
    assert torch.equal(shares.argmax(1, keepdim=True)[is_clear], best[is_clear])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"options": {"kk": 3}}, "did you mean `k`"),
        ({"options": {"k": 0}}, "expected 1 or more"),
        ({"options": {"lambda_snh": 3}}, "not read with `weights: v-sknn`"),
        ({"options": {"weights": "stan", "idf": 1}}, "not read with `weights: stan`"),
        ({"members": [{}]}, "has no `members`"),
        ({"next_item": False, "targets": []}, "has no `next_item: false`"),
        ({"towers": [{"architecture": "gru"}]}, "has no `towers`"),
        ({"architecture": "sesion-knn"}, "did you mean `session-knn`"),
        (
            {"architecture": "sasrec", "members": [{"architecture": "popularity"}]},
            "is a counting model",
        ),
        (
            {"architecture": "sasrec", "towers": [{"architecture": "popularity"}]},
            "is a counting model",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict({"architecture": "session-knn"} | model, "recipe")


def test_settings_hold_the_defaults_of_the_options() -> None:
    config = ModelConfig.from_dict({"architecture": "sequential-rules"}, "recipe")
    settings = {
        "architecture": "sequential-rules",
        "options": {"steps": 10, "weighting": "div", "pruning": 1000},
    }
    assert config.settings() == settings
    assert ModelConfig.from_dict(settings, "model.json").counting == config.counting
