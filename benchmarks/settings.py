"""What is measured: models, catalogue sizes, and forms of our training."""

from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig

LONGEST = 20
"""L: interactions of the longest session."""
BATCH_SIZE = 128
"""B: sessions a step, in ours on average."""
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
MLM_PROBABILITY = 0.15
DROPOUT = 0.3
N_HEAD = 4
N_LAYER = 2


@dataclass(frozen=True, kw_only=True)
class Form:
    """A way in which ours trains the model of a setting."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    """Changes of ModelConfig."""
    train: dict[str, Any] = field(default_factory=dict)
    """Changes of TrainConfig."""
    same_loss: bool = True
    """Whether the loss is the original's, so that it can be compared."""

    @property
    def known(self) -> bool:
        """Whether this version has these settings."""
        return (
            self.model.keys() <= ModelConfig.model_fields.keys()
            and self.train.keys() <= TrainConfig.model_fields.keys()
        )


EXACT = Form(name="exact")
FORMS = (
    EXACT,
    Form(name="bf16", train={"matmul_precision": "medium"}),
    Form(name="recompute", train={"recompute": True}),
    Form(
        name="sampled",
        train={
            "loss": "sampled-softmax",
            "negatives": "log-uniform",
            "num_negatives": 256,
            "table_optimizer": "lazy-adamw",
        },
        same_loss=False,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One model on one catalogue."""

    architecture: str
    masking: str
    items: int
    d_model: int
    steps: int
    """Steps of a turn."""
    forms: tuple[str, ...] = ("exact",)
    """Names of forms that are measured."""

    @property
    def name(self) -> str:
        """Such as gpt2-clm."""
        return f"{self.architecture}-{self.masking}"

    def with_width(self, d_model: int) -> "Setting":
        """The same with another D."""
        return replace(self, d_model=d_model)

    def model_config(self, form: Form = EXACT, **changes: Any) -> ModelConfig:
        """Ours."""
        values = {
            "architecture": self.architecture,
            "masking": self.masking,
            "mlm_probability": MLM_PROBABILITY,
            "d_model": self.d_model,
            "n_head": N_HEAD,
            "n_layer": N_LAYER,
            "dropout": DROPOUT,
        }
        return ModelConfig.from_dict(values | form.model | changes, self.name)

    def train_config(self, form: Form = EXACT, **changes: Any) -> TrainConfig:
        """Ours."""
        values = {
            "epochs": 100_000,  # the turns say when it is over
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "warmup_ratio": 0.0,
            "schedule": "constant",
        }
        return TrainConfig.from_dict(values | form.train | changes, self.name)

    def original(self, **changes: Any) -> dict[str, Any]:
        """The same for the program of the original."""
        return {
            "architecture": self.architecture,
            "masking": self.masking,
            "mlm_probability": MLM_PROBABILITY,
            "d_model": self.d_model,
            "n_head": N_HEAD,
            "n_layer": N_LAYER,
            "dropout": DROPOUT,
            "longest": LONGEST,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
        } | changes


_LARGE = ("exact", "bf16", "recompute", "sampled")
SETTINGS = (
    Setting(architecture="xlnet", masking="mlm", items=10_000, d_model=64, steps=16),
    Setting(architecture="gpt2", masking="clm", items=10_000, d_model=64, steps=16),
    Setting(architecture="bert", masking="mlm", items=10_000, d_model=64, steps=16),
    Setting(architecture="gpt2", masking="clm", items=200_000, d_model=128, steps=4, forms=_LARGE),
    Setting(architecture="xlnet", masking="mlm", items=200_000, d_model=128, steps=4, forms=_LARGE),
)


def choose(models: tuple[str, ...], items: tuple[int, ...]) -> list[Setting]:
    """Settings of these models and catalogues, all where a choice is empty.

    ConfigError where that leaves none.
    """
    names = sorted({setting.name for setting in SETTINGS})
    sizes = sorted({setting.items for setting in SETTINGS})
    for name in models:
        if name not in names:
            raise ConfigError(f"There is no model {name!r}, expected one of {', '.join(names)}.")
    for size in items:
        if size not in sizes:
            expected = ", ".join(map(str, sizes))
            raise ConfigError(f"No setting has {size} items, expected one of {expected}.")
    chosen = [
        setting
        for setting in SETTINGS
        if (not models or setting.name in models) and (not items or setting.items in items)
    ]
    if not chosen:
        known = ", ".join(f"{setting.name} with {setting.items}" for setting in SETTINGS)
        raise ConfigError(f"No setting has these models and items, expected some of: {known}.")
    return chosen


def choose_forms(setting: Setting, names: tuple[str, ...]) -> list[Form]:
    """Forms of a setting among `names`, all where that is empty, which this version knows."""
    return [
        form
        for form in FORMS
        if form.name in setting.forms and form.known and (not names or form.name in names)
    ]
