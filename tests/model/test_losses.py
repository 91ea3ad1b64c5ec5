"""Losses against formulas in plain Python, and what sampling does to their gradients."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from pipeline.core.errors import ConfigError
from pipeline.model.losses import LOSSES, LabelSmoothCrossEntropyLoss, Sampled, build_loss
from pipeline.model.losses.sampled import GBCELoss
from pipeline.model.tasks.negatives import NegativeSampler, is_negative
from pipeline.recipe.choices import FULL_LOSSES, NEGATIVES, SAMPLED_LOSSES

SCORES = [0.7, -1.2, 0.3, 1.5, -0.4]
"""A catalogue of five items."""
COUNTS = [50, 30, 0, 15, 5]
"""One item was never seen."""
DISTRIBUTIONS = {
    "uniform": [1 / 5] * 5,
    "log-uniform": [math.log((r + 2) / (r + 1)) / math.log(6) for r in range(5)],
    "popularity": [0.5, 0.3, 0.0, 0.15, 0.05],
    "in-batch": [0.5, 0.3, 0.0, 0.15, 0.05],
}
OPTIONS = {"gbce_t": 0.6, "regularization": 0.3}


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(scores: list[float]) -> list[float]:
    return [math.exp(s) / sum(math.exp(other) for other in scores) for s in scores]


def sampled_softmax(
    p: float, kept: list[float], logs: list[float], drawn: tuple[int, int]
) -> float:
    partition = math.exp(p)
    for s, log in zip(kept, logs, strict=True):
        partition += math.exp(s) / math.exp(log)
    return -p + math.log(partition)


def gbce(p: float, kept: list[float], logs: list[float], drawn: tuple[int, int]) -> float:
    (columns, others), t = drawn, OPTIONS["gbce_t"]
    alpha = min(columns / others, 1.0)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    balance = math.log(beta / columns)  # where equal scores neither rise nor fall
    loss = -math.log(sigma(p + balance) ** beta)
    for s in kept:
        loss -= math.log(1 - sigma(s + balance))
    return loss / (len(kept) + 1)


def bpr(p: float, kept: list[float], logs: list[float], drawn: tuple[int, int]) -> float:
    return sum(-math.log(sigma(p - s)) for s in kept) / len(kept)


def top1(p: float, kept: list[float], logs: list[float], drawn: tuple[int, int]) -> float:
    return sum(sigma(s - p) + sigma(s**2) for s in kept) / len(kept)


def bpr_max(p: float, kept: list[float], logs: list[float], drawn: tuple[int, int]) -> float:
    weights = softmax(kept)
    won = sum(w * sigma(p - s) for w, s in zip(weights, kept, strict=True))
    penalty = sum(w * s**2 for w, s in zip(weights, kept, strict=True))
    return -math.log(won) + OPTIONS["regularization"] * penalty


def top1_max(p: float, kept: list[float], logs: list[float], drawn: tuple[int, int]) -> float:
    weights = softmax(kept)
    return sum(w * (sigma(s - p) + sigma(s**2)) for w, s in zip(weights, kept, strict=True))


FORMULAS: dict[str, Callable[[float, list[float], list[float], tuple[int, int]], float]] = {
    "sampled-softmax": sampled_softmax,
    "gbce": gbce,
    "bpr": bpr,
    "bpr-max": bpr_max,
    "top1": top1,
    "top1-max": top1_max,
}
"""Score of the target, scores of its negatives, log(N q_j) of each, (N, items - 1) -> loss."""


def some_sampled(dtype: torch.dtype = torch.float64) -> Sampled:
    """Six targets of four draws: all, three, two, one and none of them negatives."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(6, 5, generator=generator, dtype=torch.float64).to(dtype) * 1.5
    kept = torch.ones(6, 4, dtype=torch.bool)
    kept[1, 2] = kept[2, 0] = kept[2, 3] = False
    kept[3, 1:] = kept[4] = False
    log_expected = torch.randn(6, 4, generator=generator, dtype=torch.float64).to(dtype)
    return Sampled(scores[:, 0], scores[:, 1:], log_expected, kept, 11)


def by_hand(name: str, sampled: Sampled) -> list[float]:
    losses = []
    for row in range(sampled.positive.numel()):
        columns = [j for j in range(sampled.negative.size(1)) if sampled.is_negative[row, j]]
        kept = [sampled.negative[row, j].item() for j in columns]
        logs = [sampled.log_expected[row, j].item() for j in columns]
        drawn = (sampled.negative.size(1), sampled.num_items - 1)
        loss = FORMULAS[name](sampled.positive[row].item(), kept, logs, drawn) if kept else 0.0
        losses.append(loss)
    return losses


def gradients(name: str, sampled: Sampled) -> tuple[Tensor, Tensor, Tensor]:
    """(T,) losses, (T,) and (T, N) gradients of their sum."""
    positive = sampled.positive.detach().clone().requires_grad_()
    negative = sampled.negative.detach().clone().requires_grad_()
    losses = build_loss(name, **OPTIONS)(sampled._replace(positive=positive, negative=negative))
    return losses, *torch.autograd.grad(losses.sum(), (positive, negative))


@pytest.mark.parametrize("name", SAMPLED_LOSSES)
def test_a_sampled_loss_is_its_formula_row_by_row(name: str) -> None:
    sampled = some_sampled()
    losses = build_loss(name, **OPTIONS)(sampled)
    torch.testing.assert_close(losses.tolist(), by_hand(name, sampled), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLED_LOSSES)
def test_one_negative_is_enough(name: str) -> None:
    sampled = some_sampled()
    sampled = sampled._replace(
        negative=sampled.negative[:, :1],
        log_expected=sampled.log_expected[:, :1],
        is_negative=sampled.is_negative[:, :1],
    )
    losses = build_loss(name, **OPTIONS)(sampled)
    torch.testing.assert_close(losses.tolist(), by_hand(name, sampled), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLED_LOSSES)
def test_a_sampled_loss_has_the_gradient_of_its_values(name: str) -> None:
    sampled, loss = some_sampled(), build_loss(name, **OPTIONS)
    inputs = (sampled.positive.requires_grad_(), sampled.negative.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda p, n: loss(sampled._replace(positive=p, negative=n)), inputs
    )


@pytest.mark.parametrize("name", SAMPLED_LOSSES)
@pytest.mark.parametrize("masked_score", [0.0, 1e4, -1e4, math.inf, -math.inf, math.nan])
def test_a_draw_that_is_no_negative_takes_no_part(name: str, masked_score: float) -> None:
    sampled = some_sampled()
    usual = gradients(name, sampled)
    other = sampled._replace(
        negative=sampled.negative.masked_fill(~sampled.is_negative, masked_score),
        log_expected=sampled.log_expected.masked_fill(~sampled.is_negative, masked_score),
    )
    changed = gradients(name, other)
    torch.testing.assert_close(changed, usual, rtol=0, atol=0)
    assert not changed[2][~sampled.is_negative].any()


@pytest.mark.parametrize("name", SAMPLED_LOSSES)
@pytest.mark.parametrize("num_negatives", [0, 1, 4])
def test_without_negatives_loss_and_gradient_are_zero(name: str, num_negatives: int) -> None:
    nothing = torch.zeros(3, num_negatives)
    sampled = Sampled(torch.tensor([0.5, 1e4, -1e4]), nothing, nothing, nothing.bool(), 5)
    for result in gradients(name, sampled):
        assert not result.any()


@pytest.mark.parametrize("name", SAMPLED_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_extreme_scores_give_finite_losses_and_gradients(name: str, dtype: torch.dtype) -> None:
    values = [1e4, 0.0, -1e4]
    triples = torch.tensor(list(itertools.product(values, repeat=3)), dtype=dtype)
    kept = torch.ones(27, 2, dtype=torch.bool)
    log_expected = torch.tensor([[-15.0, 3.0]])
    sampled = Sampled(triples[:, 0], triples[:, 1:], log_expected, kept, 5)
    losses, *both = gradients(name, sampled)
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert all(gradient.isfinite().all() for gradient in both)


def test_a_lost_pair_keeps_its_gradient_at_extreme_scores() -> None:
    lost = Sampled(
        torch.tensor([-1e4]),
        torch.tensor([[1e4]]),
        torch.zeros(1, 1),
        torch.ones(1, 1, dtype=torch.bool),
        5,
    )
    for name in ("sampled-softmax", "bpr", "bpr-max"):
        _, positive, _ = gradients(name, lost)
        assert positive.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("name", SAMPLED_LOSSES)
def test_half_precision_scores_give_a_loss_in_single(name: str) -> None:
    low = some_sampled(torch.bfloat16)
    exact = low._replace(positive=low.positive.double(), negative=low.negative.double())
    losses = build_loss(name)(low)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), build_loss(name)(exact), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*FULL_LOSSES, *SAMPLED_LOSSES])
def test_no_target_is_no_loss(name: str) -> None:
    loss = build_loss(name)
    if loss.sampled:
        nothing = torch.zeros(0, 4, requires_grad=True)
        result = loss(Sampled(nothing[:, 0], nothing, nothing, nothing.bool(), 5))
    else:
        nothing = torch.zeros(0, 5, requires_grad=True)
        result = loss(nothing, torch.zeros(0, dtype=torch.long))
    result.sum().backward()
    assert result.shape == (0,)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_its_formula_row_by_row(smoothing: float) -> None:
    logits = torch.tensor([SCORES, [3.0, 0.0, 0.0, 0.0, -2.0]], dtype=torch.float64)
    expected = []
    for row, target in zip(logits.tolist(), [3, 4], strict=True):
        loss = 0.0
        for item, probability in enumerate(softmax(row)):
            share = smoothing / 5 + (1 - smoothing if item == target else 0.0)
            loss -= share * math.log(probability)
        expected.append(loss)
    targets = torch.tensor([3, 4])
    losses = build_loss("cross-entropy", label_smoothing=smoothing)(logits, targets)
    torch.testing.assert_close(losses.tolist(), expected)
    for reduction, number in (("mean", sum(expected) / 2), ("sum", sum(expected))):
        reduced = LabelSmoothCrossEntropyLoss(smoothing, reduction)(logits, targets)
        assert reduced.item() == pytest.approx(number)
    mean = LabelSmoothCrossEntropyLoss(smoothing)
    assert mean(logits[:0], targets[:0]).item() == 0.0
    assert torch.autograd.gradcheck(lambda x: mean(x, targets), logits.requires_grad_())


def test_cross_entropy_is_finite_at_extreme_scores() -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    losses = build_loss("cross-entropy", label_smoothing=0.1)(logits, torch.tensor([0, 0]))
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_gbce_lowers_the_weight_of_the_target_by_its_calibration(t: float) -> None:
    # 1 of 4 possible negatives: beta is 1, 1 - 0.5 * 0.75, and 0.25
    kept = torch.ones(1, 1, dtype=torch.bool)
    zero = torch.zeros(1, 1)
    result = GBCELoss(t)(Sampled(zero[0], zero, zero, kept, 5))
    beta = 1 - 0.75 * t
    share = beta / (beta + 1)  # of the target, where equal scores stand in balance
    assert result.item() == pytest.approx(-(beta * math.log(share) + math.log(1 - share)) / 2)


@pytest.mark.parametrize("t", [0.0, 0.75])
def test_gbce_neither_raises_nor_lowers_equal_scores(t: float) -> None:
    scores = torch.zeros(1, 51, requires_grad=True)
    kept = torch.ones(1, 50, dtype=torch.bool)
    GBCELoss(t)(Sampled(scores[:, 0], scores[:, 1:], torch.zeros(1, 50), kept, 900)).backward()
    assert scores.grad is not None
    assert abs(scores.grad.sum().item()) < 1e-6
    assert scores.grad[0, 0].item() < 0


def test_gbce_with_more_draws_than_items_is_plain_binary_cross_entropy() -> None:
    sampled = some_sampled()
    plain = GBCELoss(0.0)(sampled)
    torch.testing.assert_close(GBCELoss(1.0)(sampled._replace(num_items=3)), plain)
    torch.testing.assert_close(GBCELoss(1.0)(sampled._replace(num_items=1)), plain)


# What sampling does to a gradient

TARGET = 3


def sampler(distribution: str, num_negatives: int = 2, shared: bool = False) -> NegativeSampler:
    return NegativeSampler(
        5,
        distribution=distribution,
        num_negatives=num_negatives,
        shared=shared,
        counts=torch.tensor(COUNTS),
    )


def draw_many(distribution: str, times: int) -> tuple[Tensor, Tensor]:
    """(times, draws), (times, draws): independent draws for a row whose target is TARGET."""
    if distribution != "in-batch":
        return tuple(sampler(distribution).draw(torch.full((times,), TARGET)))  # type: ignore[return-value]
    # a batch of three: the row itself and two targets that come as often as their counts say
    shop, others = sampler("in-batch"), torch.tensor(DISTRIBUTIONS["in-batch"])
    batches = [
        shop.draw(torch.tensor([TARGET, *pair]))
        for pair in torch.multinomial(others, 2 * times, replacement=True).view(times, 2).tolist()
    ]
    return torch.stack([b.items for b in batches]), torch.stack([b.log_expected for b in batches])


def loss_of_draws(
    name: str, scores: list[float], draws: tuple[int, ...], distribution: str
) -> float:
    """The formula for two draws, without a line of what is tested."""
    q, kept = DISTRIBUTIONS[distribution], [j for j in draws if j != TARGET]
    logs = [math.log(2 * q[j]) for j in kept]
    columns = 3 if distribution == "in-batch" else 2
    if not kept:
        return 0.0
    return FORMULAS[name](scores[TARGET], [scores[j] for j in kept], logs, (columns, 4))


def exact_expectation(name: str, distribution: str) -> list[float]:
    """Gradient of the expected loss by each score: over all pairs of draws, by differences."""

    def expected(scores: list[float]) -> float:
        q = DISTRIBUTIONS[distribution]
        return sum(
            q[j] * q[k] * loss_of_draws(name, scores, (j, k), distribution)
            for j, k in itertools.product(range(5), repeat=2)
            if q[j] * q[k] > 0
        )

    step, result = 1e-5, []
    for item in range(5):
        up, down = list(SCORES), list(SCORES)
        up[item] += step
        down[item] -= step
        result.append((expected(up) - expected(down)) / (2 * step))
    return result


def sampled_from(
    scores: Tensor, items: Tensor, log_expected: Tensor, corrected: float = 0.0
) -> Sampled:
    """Rows that all have TARGET, from (T, 5) scores."""
    targets = torch.full((scores.size(0),), TARGET)
    kept = is_negative(items, targets)
    return Sampled(scores[:, TARGET] - corrected, scores.gather(1, items), log_expected, kept, 5)


@pytest.mark.parametrize("distribution", NEGATIVES)
@pytest.mark.parametrize("name", SAMPLED_LOSSES)
def test_the_mean_gradient_over_draws_is_that_of_the_expected_loss(
    name: str, distribution: str
) -> None:
    torch.manual_seed(11)
    times = 4_000 if distribution == "in-batch" else 100_000
    items, log_expected = draw_many(distribution, times)
    scores = torch.tensor(SCORES, dtype=torch.float64).repeat(times, 1).requires_grad_()
    build_loss(name, **OPTIONS)(sampled_from(scores, items, log_expected)).sum().backward()
    assert scores.grad is not None
    error = 5 * scores.grad.std(0) / math.sqrt(times) + 1e-7
    expected = torch.tensor(exact_expectation(name, distribution), dtype=torch.float64)
    assert ((scores.grad.mean(0) - expected).abs() < error).all()


@pytest.mark.parametrize("distribution", NEGATIVES)
def test_sampled_softmax_estimates_the_partition_sum_without_bias(distribution: str) -> None:
    torch.manual_seed(12)
    times = 4_000 if distribution == "in-batch" else 100_000
    items, log_expected = draw_many(distribution, times)
    scores = torch.tensor(SCORES, dtype=torch.float64).repeat(times, 1)
    losses = build_loss("sampled-softmax")(sampled_from(scores, items, log_expected))
    estimates = (losses + SCORES[TARGET]).exp()
    # an item that is never drawn does not exist for it
    reached = zip(SCORES, DISTRIBUTIONS[distribution], strict=True)
    exact = sum(math.exp(score) for score, q in reached if q > 0)
    assert abs(estimates.mean() - exact) < 5 * estimates.std() / math.sqrt(times)


@pytest.mark.parametrize("distribution", ["uniform", "log-uniform"])
def test_with_many_negatives_sampled_softmax_has_the_gradient_of_the_full_one(
    distribution: str,
) -> None:
    torch.manual_seed(13)
    negatives = sampler(distribution, 20_000, shared=True).draw(torch.tensor([TARGET]))
    own = math.log(20_000 * DISTRIBUTIONS[distribution][TARGET])

    def gradient(corrected: float) -> Tensor:
        scores = torch.tensor([SCORES], dtype=torch.float64, requires_grad=True)
        items = negatives.items.unsqueeze(0)
        sampled = sampled_from(scores, items, negatives.log_expected, corrected)
        return torch.autograd.grad(build_loss("sampled-softmax")(sampled).sum(), scores)[0][0]

    full = torch.tensor(softmax(SCORES), dtype=torch.float64)
    full[TARGET] -= 1
    torch.testing.assert_close(gradient(0.0), full, rtol=0, atol=0.01)
    # the target is there by no draw: corrected like one it would count as one of thousands
    assert (gradient(own) - full).abs().max() > 0.3


# Which negatives


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("distribution", ["uniform", "log-uniform", "popularity"])
def test_items_are_drawn_as_often_as_the_distribution_says(distribution: str, shared: bool) -> None:
    torch.manual_seed(14)
    drawn = sampler(distribution, 50_000 if shared else 5, shared).draw(
        torch.zeros(10_000, dtype=torch.long)
    )
    assert drawn.items.shape == drawn.log_expected.shape == ((50_000,) if shared else (10_000, 5))
    result = torch.bincount(drawn.items.flatten(), minlength=5).tolist()
    q = DISTRIBUTIONS[distribution]
    assert all(number == 0 for number, share in zip(result, q, strict=True) if share == 0)
    pairs = [(number, 50_000 * share) for number, share in zip(result, q, strict=True) if share]
    assert stats.chisquare(*zip(*pairs, strict=True)).pvalue > 1e-4
    per_row = drawn.items.shape[-1]
    for item, log in zip(drawn.items.flatten()[:50], drawn.log_expected.flatten(), strict=False):
        assert log.item() == pytest.approx(math.log(per_row * q[item]), abs=1e-5)


@pytest.mark.parametrize("distribution", ["uniform", "log-uniform", "popularity"])
def test_both_ends_of_a_large_catalogue_are_reached(distribution: str) -> None:
    torch.manual_seed(15)
    counts = torch.ones(1_000).double() / 3  # no whole numbers
    large = NegativeSampler(1_000, distribution=distribution, num_negatives=50_000, counts=counts)
    drawn = large.draw(torch.tensor([0]))
    assert (drawn.items.min(), drawn.items.max()) == (0, 999)
    if distribution != "log-uniform":
        assert drawn.log_expected.unique().tolist() == pytest.approx([math.log(50)])


def test_in_batch_the_negatives_are_the_targets_of_the_other_rows() -> None:
    targets = torch.tensor([0, 3, 0, 2])
    drawn = sampler("in-batch").draw(targets)
    assert drawn.items.tolist() == [0, 3, 0, 2]
    # three others a row; the item that was never seen counts like the rarest one
    expected = [3 * 0.5, 3 * 0.15, 3 * 0.5, 3 * 0.05]
    assert drawn.log_expected.exp().tolist() == pytest.approx(expected, rel=1e-5)
    assert is_negative(drawn.items, targets).tolist() == [
        [False, True, False, True],
        [True, False, True, True],
        [False, True, False, True],
        [True, True, True, False],
    ]


@pytest.mark.parametrize("distribution", ["uniform", "log-uniform", "popularity"])
def test_the_largest_random_number_is_still_an_item(
    distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = torch.full((1,), 1 - 2**-53, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *size, **options: largest)
    for num_items in range(1, 200):
        last = NegativeSampler(
            num_items, distribution=distribution, num_negatives=1, counts=torch.ones(num_items)
        )
        assert last.draw(torch.tensor([0])).items.item() == num_items - 1


def test_a_count_far_below_all_others_stays_above_zero() -> None:
    counts = torch.tensor([0.5, 1e-20], dtype=torch.float64)
    drawn = NegativeSampler(2, distribution="in-batch", counts=counts).draw(torch.tensor([0, 1]))
    assert drawn.log_expected[1] < -25


@pytest.mark.parametrize("distribution", NEGATIVES)
@pytest.mark.parametrize("shared", [True, False])
def test_draws_follow_the_seed_and_survive_a_model_in_half_precision(
    distribution: str, shared: bool
) -> None:
    targets = torch.tensor([0, 1, 4])
    torch.manual_seed(16)
    first = sampler(distribution, 50, shared).draw(targets)
    torch.manual_seed(16)
    again = sampler(distribution, 50, shared).half().draw(targets)
    assert torch.equal(first.items, again.items)
    assert torch.equal(first.log_expected, again.log_expected)
    assert is_negative(first.items, targets).dtype == torch.bool
    assert not sampler(distribution).state_dict()


@pytest.mark.parametrize("distribution", NEGATIVES)
@pytest.mark.parametrize("shared", [True, False])
def test_no_target_and_a_catalogue_of_one_item_can_be_drawn_for(
    distribution: str, shared: bool
) -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    none = sampler(distribution, 7, shared).draw(nothing)
    assert is_negative(none.items, nothing).shape == (0, 0 if distribution == "in-batch" else 7)
    alone = NegativeSampler(
        1, distribution=distribution, num_negatives=7, shared=shared, counts=torch.tensor([4])
    )
    for targets in (torch.zeros(1, dtype=torch.long), torch.zeros(3, dtype=torch.long)):
        drawn = alone.draw(targets)
        assert drawn.log_expected.isfinite().all()
        assert not is_negative(drawn.items, targets).any()


# What is refused


def test_every_name_has_its_loss() -> None:
    assert {*LOSSES} == {*FULL_LOSSES, *SAMPLED_LOSSES}
    for name in (*FULL_LOSSES, *SAMPLED_LOSSES):
        assert build_loss(name).sampled == (name in SAMPLED_LOSSES)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: build_loss("bpr_max"), "did you mean `bpr-max`"),
        (lambda: build_loss("../os"), "known here: cross-entropy"),
        (lambda: build_loss("cross-entropy", label_smoothing=1.0), "label smoothing is 1.0"),
        (lambda: build_loss("gbce", gbce_t=1.5), "gbce_t is 1.5, expected from 0 to 1"),
        (lambda: build_loss("bpr-max", regularization=math.nan), "regularization is nan"),
        (lambda: LabelSmoothCrossEntropyLoss(0.1, "average"), "reduction is 'average'"),
        (lambda: NegativeSampler(5, distribution="log_uniform"), "did you mean `log-uniform`"),
        (lambda: NegativeSampler(0, distribution="uniform"), "num_items is 0"),
        (lambda: sampler("uniform", 0), "num_negatives is 0"),
        (lambda: NegativeSampler(5, distribution="popularity"), "Pass `item_counts`"),
        (lambda: NegativeSampler(5, distribution="in-batch"), "Pass `item_counts`"),
        (lambda: of_counts([1.0, 2.0]), "shape (2,), expected one count for each of the 5 items"),
        (lambda: of_counts([0.0] * 5), "none above 0"),
        (lambda: of_counts([1.0, -1.0, 1.0, 1.0, 1.0]), "a negative or infinite count"),
        (lambda: of_counts([1.0, math.inf, 1.0, 1.0, 1.0]), "a negative or infinite count"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(call: Callable[[], Any], expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        call()
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def of_counts(counts: list[float]) -> NegativeSampler:
    return NegativeSampler(5, distribution="popularity", counts=torch.tensor(counts))
