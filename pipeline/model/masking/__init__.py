"""What a sequence model predicts and what it may see on the way.

A masking takes interaction embeddings (B, L, D) and says which targets (B, L) belong to them.
Evaluating a session is predicting it without its last item, by the same positions:

| n items in the row    | clm                          | mlm, rtd                     | plm        |
| --------------------- | ---------------------------- | ---------------------------- | ---------- |
| train                 | position i predicts item     | hidden items, at least one   | the same   |
|                       | i + 1 (or the last one only) | and never all, in place      | in an order|
| evaluate (row incl.   | the same; the last item is   | item n - 1 hidden and        | as mlm     |
| its target)           | no input                     | predicted in place           |            |
| predict               | position n - 1 predicts what | a hidden position n is       | as mlm     |
|                       | comes next                   | appended and predicted       |            |

rtd learns to tell replaced interactions besides.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from pipeline.core.arguments import closest
from pipeline.core.errors import ConfigError
from pipeline.model.masking.causal import CausalMasking
from pipeline.model.masking.masked import MaskedMasking
from pipeline.model.masking.permutation import PermutationMasking
from pipeline.model.masking.replacement import Replaced, ReplacementMasking
from pipeline.model.masking.sequence import MaskedSequence, Masking, NoMasking, Stage

__all__ = [
    "CausalMasking",
    "MaskedMasking",
    "MaskedSequence",
    "Masking",
    "NoMasking",
    "PermutationMasking",
    "Replaced",
    "ReplacementMasking",
    "Stage",
    "build_masking",
    "choose_masking",
]

SHORT_NAMES = {
    "clm": "clm",
    "causal": "clm",
    "mlm": "mlm",
    "masked": "mlm",
    "plm": "plm",
    "permutation": "plm",
    "rtd": "rtd",
    "replacement": "rtd",
}
ARGUMENTS = {
    "clm": ("train_on_last_item_seq_only",),
    "mlm": ("mlm_probability",),
    "plm": ("plm_probability", "max_span_length", "permute_all"),
    "rtd": (
        "mlm_probability",
        "sample_from_batch",
        "tied_generator",
        "generator_loss_weight",
        "discriminator_loss_weight",
    ),
}
"""Arguments of each masking."""


def build_masking(
    name: str, width: int, arguments: Mapping[str, Any] | None = None, *, item_alone: bool = True
) -> Masking:
    """Masking by its name, for vectors of `width`; what is None in `arguments` has its default.

    `item_alone`: whether the input block reads nothing but the item. ConfigError for an unknown
    name and for an argument of another masking.
    """
    if name not in SHORT_NAMES:
        raise ConfigError(
            f"masking is {name!r}; {closest(name, list(SHORT_NAMES))} Expected clm (causal), mlm "
            "(masked), plm (permutation) or rtd (replacement)."
        )
    short = SHORT_NAMES[name]
    given = {key: value for key, value in (arguments or {}).items() if value is not None}
    for key in given:
        if key not in ARGUMENTS[short]:
            owners = " and ".join(n for n, known in ARGUMENTS.items() if key in known)
            raise ConfigError(f"`{key}` is for {owners or 'no masking'}; the masking is {short}.")
    masking: nn.Module
    match short:
        case "clm":
            masking = CausalMasking(**given)
        case "mlm":
            masking = MaskedMasking(width, given.get("mlm_probability", 0.2))
        case "plm":
            given["probability"] = given.pop("plm_probability", 1 / 6)
            masking = PermutationMasking(**given)
        case _:
            given["probability"] = given.pop("mlm_probability", 0.2)
            _check_replacement(item_alone, from_batch=given.get("sample_from_batch"))
            given.setdefault("sample_from_batch", not item_alone)
            masking = ReplacementMasking(width, **given)
    assert isinstance(masking, Masking)  # noqa: S101
    return masking


def choose_masking(
    given: str | Masking | None,
    width: int,
    arguments: Mapping[str, Any],
    *,
    item_alone: bool,
) -> Masking | None:
    """A masking by name, or one that was made already, checked; None for none."""
    if isinstance(given, str):
        return build_masking(given, width, arguments, item_alone=item_alone)
    for key, value in arguments.items():
        if value is not None:
            raise ConfigError(f"`{key}` goes with the name of a masking; leave it out.")
    if given is None:
        return None
    if isinstance(given, type) or not isinstance(given, Masking):
        raise ConfigError(
            f"masking is {given!r}, expected clm, mlm, plm, rtd or a masking such as "
            "CausalMasking()."
        )
    masked = given.masked if isinstance(given, ReplacementMasking) else given
    if isinstance(masked, MaskedMasking) and masked.hidden_item.numel() != width:
        raise ConfigError(
            f"The masking hides interactions of {masked.hidden_item.numel()} numbers, those of the "
            f"input block have {width}."
        )
    if isinstance(given, ReplacementMasking):
        _check_replacement(item_alone, from_batch=given.sample_from_batch)
    return given


def _check_replacement(item_alone: bool, *, from_batch: bool | None) -> None:
    if not item_alone and from_batch is False:
        raise ConfigError(
            "rtd draws items from the catalogue only for models that read nothing but the item; "
            "here other features would give the drawn ones away. Leave out sample_from_batch, so "
            "that whole interactions of the batch are drawn."
        )
