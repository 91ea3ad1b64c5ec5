"""Settings of the benchmarks: models, catalogue sizes, and forms of our training."""

from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.core.errors import ConfigError
from pipeline.recipe.model import ModelConfig
from pipeline.recipe.train import TrainConfig

LONGEST = 20
"""L: maximum number of interactions of a session."""
BATCH_SIZE = 128
"""B: sessions of a batch, in ours on average."""
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.01
MLM_PROBABILITY = 0.15
DROPOUT = 0.3
N_HEAD = 4
N_LAYER = 2
PLAIN = {"item_vectors": "random", "feature_dropout": 0.0, "normalize": False}
"""Values of ModelConfig that switch off features which Transformers4Rec does not have."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A variant of our training of a setting's model."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    """Values of ModelConfig that replace those of the setting."""
    train: dict[str, Any] = field(default_factory=dict)
    """Values of TrainConfig that replace those of the setting."""
    same_loss: bool = True
    """Whether the loss is the original's, so that gradients can be compared."""

    @property
    def is_supported(self) -> bool:
        """Whether the installed version has these settings."""
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
    """Names of the forms to measure."""

    @property
    def name(self) -> str:
        """Architecture and masking, such as gpt2-clm."""
        return f"{self.architecture}-{self.masking}"

    @property
    def title(self) -> str:
        """Name, catalogue and width for a line of output."""
        return f"{self.name}, {self.items:,} items, D {self.d_model}"

    def with_width(self, d_model: int) -> "Setting":
        """Return the setting with another D."""
        return replace(self, d_model=d_model)

    def model_config(self, form: Form = EXACT, **changes: Any) -> ModelConfig:
        """Return the config of our model."""
        return ModelConfig.from_dict(self._model() | PLAIN | form.model | changes, self.name)

    def train_config(self, form: Form = EXACT, **changes: Any) -> TrainConfig:
        """Return the config of our training."""
        values = {
            "epochs": 100_000,  # training ends with the last turn
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "warmup_ratio": 0.0,
            "schedule": "constant",
        }
        return TrainConfig.from_dict(values | form.train | changes, self.name)

    def original(self, **changes: Any) -> dict[str, Any]:
        """Return the same model and training as a task of the original's program."""
        training = {
            "longest": LONGEST,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
        }
        return self._model() | training | changes

    def _model(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "masking": self.masking,
            "mlm_probability": MLM_PROBABILITY,
            "d_model": self.d_model,
            "n_head": N_HEAD,
            "n_layer": N_LAYER,
            "dropout": DROPOUT,
        }


_LARGE = ("exact", "bf16", "recompute", "sampled")
SETTINGS = (
    Setting(architecture="xlnet", masking="mlm", items=10_000, d_model=64, steps=16),
    Setting(architecture="gpt2", masking="clm", items=10_000, d_model=64, steps=16),
    Setting(architecture="bert", masking="mlm", items=10_000, d_model=64, steps=16),
    Setting(architecture="gpt2", masking="clm", items=200_000, d_model=128, steps=4, forms=_LARGE),
    Setting(architecture="xlnet", masking="mlm", items=200_000, d_model=128, steps=4, forms=_LARGE),
)


def choose(models: tuple[str, ...], items: tuple[int, ...]) -> list[Setting]:
    """Return settings of these models and catalogue sizes; an empty choice selects all.

    ConfigError for an unknown model or size, or if no setting is left.
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
        pairs = ", ".join(f"{setting.name} with {setting.items}" for setting in SETTINGS)
        raise ConfigError(f"No setting has these models and items, expected some of: {pairs}.")
    return chosen


def choose_forms(setting: Setting, names: tuple[str, ...]) -> list[Form]:
    """Return the supported forms of a setting among `names`, all if that is empty."""
    return [
        form
        for form in FORMS
        if form.name in setting.forms and form.is_supported and (not names or form.name in names)
    ]
