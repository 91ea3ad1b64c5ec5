"""Options of the counting models: architectures that are fitted to sessions without gradients.

Letters: d distance of an interaction from the end of the session, 1 for the newest.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.core.config import Config

Weighting = Literal["same", "div", "linear", "quadratic", "log"]
"""Weight of the interaction at distance d: 1; 1 / d; 1 - (d - 1) / 10 and 0 from the eleventh on;
1 / d²; 1 / log10(d + 1.7)."""


ItemWeighting = Literal["last", Weighting]
"""A `Weighting`, or `last`: 1 for the newest interaction, 0 for all others."""
MAX_EASE_ITEMS = 20_000
"""Largest catalogue of EASE, whose fitting inverts a matrix of all pairs: 3.2 GB of float64."""


class PopularityOptions(Config):
    """Popularity: interactions of the item in training."""

    by: str | None = None
    """Categorical feature: popularity among the interactions that have the value of the session's
    newest interaction. A session without a known value has the popularity of all."""


class RecentPopularityOptions(Config):
    """Popularity in the newest training sessions, after Ji et al. (SIGIR 2020)."""

    recent: float = Field(default=0.1, gt=0, le=1)
    """Share of the training sessions that are counted, the newest ones; ties are ordered by the
    popularity in all sessions."""


class CovisitationOptions(Config):
    """Training sessions that hold the item and the session's newest item: association rules."""

    pruning: int = Field(default=1000, ge=1)
    """Items that are stored for each item, those with the highest scores."""


class SequentialRulesOptions(Config):
    """Training sessions in which the item follows the session's newest item, weighted by distance.

    SR of Kamehkhosh et al. (2017).
    """

    steps: int = Field(default=10, ge=1)
    """Largest distance of two interactions that make a rule."""
    weighting: Weighting = "div"
    """Weight of a rule by its distance."""
    pruning: int = Field(default=1000, ge=1)
    """Items that are stored for each item, those with the highest scores."""


class ItemKnnOptions(Config):
    """Similarity of items by the sessions that hold them, as in GRU4Rec's ItemKNN.

    The number of sessions with both items, divided by (n + regularization) to the power of alpha
    for the item of the session and of 1 - alpha for the scored item; n is the number of sessions
    with an item.
    """

    regularization: float = Field(default=20.0, ge=0)
    """λ: added to the number of sessions of each item, which lowers similarities of rare items."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """0.5 is the cosine; with 0 popular items are damped only as scored items."""
    weighting: ItemWeighting = "last"
    """Weight of an item of the session by its distance from the end."""
    pruning: int = Field(default=100, ge=1)
    """Items that are stored for each item, the most similar ones."""


class EaseOptions(Config):
    """Linear model of sessions as sets, in closed form: EASE, Steck (WWW 2019).

    The weights are B = I - P / diag(P) with P = (X'X + regularization I)^-1 and X the sessions, so
    that an item does not score itself. At most `MAX_EASE_ITEMS` items.
    """

    regularization: float = Field(default=500.0, gt=0)
    """λ: the paper's for MovieLens 20M, of 137,000 users; smaller logs need less."""
    weighting: ItemWeighting = "same"
    """Weight of an item of the session by its distance from the end."""
    pruning: int = Field(default=1000, ge=1)
    """Weights that are stored for each item, the largest by their absolute value."""


class SessionKnnOptions(Config):
    """Items of the most similar training sessions.

    V-SkNN of Ludewig & Jannach (UMUAI 2018), who let the weights fall linearly and read 100
    neighbours of 1,000 sessions; the defaults here are better on the logs that they were chosen
    on. STAN of Garg et al. (SIGIR 2019) has three exponential weights: `weights: stan`.
    """

    k: int = Field(default=200, ge=1)
    """Neighbours: most similar training sessions."""
    sample_size: int = Field(default=1000, ge=1)
    """Newest training sessions of each item that are compared."""
    weights: Literal["v-sknn", "stan"] = "v-sknn"
    """Which of the options below are read."""
    weighting: Weighting = "div"
    """v-sknn: weight of an item of the session in the similarity, by its distance from the end."""
    weighting_score: Weighting = "same"
    """v-sknn: factor of a neighbour, by the distance from the end of the session of the newest
    shared item."""
    idf: float = Field(default=0.0, ge=0)
    """v-sknn: strength of the inverse frequency; an item's score is multiplied by 1 + idf times
    log(sessions / sessions with the item)."""
    lambda_spw: float = Field(default=1.02, gt=0)
    """stan: λ1, interactions over which the weight of an item of the session falls to 1 / e."""
    lambda_snh: float = Field(default=5.0, gt=0)
    """stan: λ2, days over which the weight of a neighbour falls to 1 / e."""
    lambda_inh: float = Field(default=2.05, gt=0)
    """stan: λ3, interactions of the neighbour, counted from the newest shared item, over which the
    weight of its item falls to 1 / e."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        other = _OF_STAN if self.weights == "v-sknn" else _OF_V_SKNN
        for name in other:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"`{name}` is not read with `weights: {self.weights}`")
        return self


_OF_STAN = ("lambda_spw", "lambda_snh", "lambda_inh")
_OF_V_SKNN = ("weighting", "weighting_score", "idf")

COUNTING: dict[str, type[Config]] = {
    "popularity": PopularityOptions,
    "recent-popularity": RecentPopularityOptions,
    "co-visitation": CovisitationOptions,
    "sequential-rules": SequentialRulesOptions,
    "item-knn": ItemKnnOptions,
    "ease": EaseOptions,
    "session-knn": SessionKnnOptions,
}
"""Counting models, with their options."""
