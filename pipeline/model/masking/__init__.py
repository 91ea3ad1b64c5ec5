"""Maskings: the targets of a session, and the positions visible to predict them.

A masking takes interaction embeddings (B, L, D) and returns them with targets (B, L). Evaluating a
session equals predicting it without its last item, by the same positions:

| session of n items    | clm                          | mlm, rtd                     | plm        |
| --------------------- | ---------------------------- | ---------------------------- | ---------- |
| train                 | position i predicts item     | masked items, at least one   | the same   |
|                       | i + 1 (or the last one only) | and never all, in place      | in an order|
| evaluate (the session | the same; the last item is   | item n - 1 is masked and     | as mlm     |
| holds its target)     | not an input                 | predicted in place           |            |
| predict               | position n - 1 predicts the  | a masked position n is       | as mlm     |
|                       | next item                    | appended and predicted       |            |

rtd also learns to detect replaced interactions.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import ConfigError, closest
from pipeline.model.masking.masked import MaskedMasking as MaskedMasking
from pipeline.model.masking.masked import PermutationMasking as PermutationMasking
from pipeline.model.masking.replacement import Replaced as Replaced
from pipeline.model.masking.replacement import ReplacementMasking as ReplacementMasking
from pipeline.model.masking.sequence import CausalMasking as CausalMasking
from pipeline.model.masking.sequence import Encoded as Encoded
from pipeline.model.masking.sequence import MaskedSequence as MaskedSequence
from pipeline.model.masking.sequence import Masking as Masking
from pipeline.model.masking.sequence import NoMasking as NoMasking
from pipeline.model.masking.sequence import Stage as Stage

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
"""Arguments of each masking in `TabularSequenceFeatures.from_schema`."""


def build_masking(
    name: str, width: int, arguments: Mapping[str, Any] | None = None, *, item_alone: bool = True
) -> Masking:
    """Build a masking by its name, for interaction embeddings of `width`.

    `arguments` have names of `ARGUMENTS`; None is the default. `item_alone` is true if the item is
    the only feature. ConfigError for an unknown name and for an argument of another masking.
    """
    if name not in SHORT_NAMES:
        raise ConfigError(
            f"masking is {name!r}; {closest(name, list(SHORT_NAMES))} Expected clm (causal), mlm "
            "(masked), plm (permutation) or rtd (replacement)."
        )
    short = SHORT_NAMES[name]
    chosen = {key: value for key, value in (arguments or {}).items() if value is not None}
    for key in chosen:
        if key not in ARGUMENTS[short]:
            owners = " and ".join(n for n, names in ARGUMENTS.items() if key in names)
            raise ConfigError(f"`{key}` is for {owners or 'no masking'}; the masking is {short}.")
    match short:
        case "clm":
            return CausalMasking(**chosen)
        case "mlm":
            return MaskedMasking(width, chosen.get("mlm_probability", 0.2))
        case "plm":
            return PermutationMasking(chosen.pop("plm_probability", 1 / 6), **chosen)
    chosen.setdefault("sample_from_batch", not item_alone)
    masking = ReplacementMasking(width, chosen.pop("mlm_probability", 0.2), **chosen)
    masking.check(width, item_alone=item_alone)
    return masking


def choose_masking(
    masking: str | Masking | None, width: int, arguments: Mapping[str, Any], *, item_alone: bool
) -> Masking | None:
    """Build a masking by its name, or check a masking object; None stays None."""
    if isinstance(masking, str):
        return build_masking(masking, width, arguments, item_alone=item_alone)
    for key, value in arguments.items():
        if value is not None:
            raise ConfigError(f"`{key}` goes with the name of a masking; leave it out.")
    if masking is None:
        return None
    if not isinstance(masking, Masking):
        raise ConfigError(
            f"masking is {masking!r}, expected clm, mlm, plm, rtd or a masking such as "
            "CausalMasking()."
        )
    masking.check(width, item_alone=item_alone)
    return masking
