"""How a policy trains a model after compression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from ...core.validation import Count, CountOrNone, Listed, Ordered, Text
from .checks import epochs_of, is_number, is_whole, require, rounded

RecoveryStep = Literal[
    "prune", "quantize", "train", "lasso", "slimming", "admm", "equalize", "adaround", "correct_bias", "awq", "gptq"
]
SPARSIFYING: tuple[RecoveryStep, ...] = ("lasso", "slimming", "admm")
"""Steps that train too, towards the zeros that pruning removes afterwards; `compression.recovery.sparsify` has the papers."""

POST_TRAINING: tuple[RecoveryStep, ...] = ("equalize", "adaround", "correct_bias", "awq", "gptq")
"""Steps that read the calibration split without its labels; `compression.recovery.post_training` has the handlers and the papers."""

TrainingData = Literal["train", "unlabelled", "synthetic"]
Schedule = Literal["one_cycle", "cosine", "constant"]
Optimizer = Literal["sgd", "adamw", "adafactor"]
AUTO = "auto"
"""What is decided by the machine that trains."""

Positive = Annotated[float, Field(gt=0)]


def _wanted(value: object) -> object:
    if isinstance(value, bool) or value == AUTO:
        return value
    raise ValueError(f"must be true, false or {AUTO}, not {value!r}")


Wanted = Annotated[bool | Literal["auto"], BeforeValidator(_wanted)]
_NAMES: Mapping[str, tuple[str, ...]] = {
    "steps": get_args(RecoveryStep),
    "data": get_args(TrainingData),
    "schedule": get_args(Schedule),
    "optimizer": get_args(Optimizer),
}


@dataclass(frozen=True)
class Recovery:
    """Training around pruning and quantization, with distillation from the uncompressed model (Hinton et al. 2015,
    arXiv:1503.02531).

    Attributes:
        epochs: passes over the training split, of which the last may be a part; 0 turns recovery off, and the other fields have no effect.
        learning_rate: the highest of its schedule.
        temperature: of the softened targets.
        alpha: weight of the distillation term in [0, 1]; 1 - alpha goes to the workload's own loss.
        steps: in order; the "train" steps and those of `SPARSIFYING`, each of which is there at most once, before "prune" and
            "quantize", share the epochs. "prune" is there once. From "quantize" on, which is there once or not at all,
            training is aware of the grids; without it quantization follows training. Those of `POST_TRAINING` work without
            epochs too.
        distiller: name of what is imitated, see `compression.recovery.distil`.
        teachers: workloads whose models teach in addition to the uncompressed one, their probabilities averaged.
        data: "train", "unlabelled" (the training inputs, their labels never read) or "synthetic" (no data at all).
        mutual: a second student is trained too, and each learns from the other.
        schedule: of the learning rate, "one_cycle", "cosine" or "constant".
        optimizer: "sgd" with Nesterov momentum 0.9, or "adamw" (Loshchilov & Hutter 2019, arXiv:1711.05101), which Transformers
            and recurrent networks learn faster with, or "adafactor" (Shazeer & Stern 2018, arXiv:1804.04235), which keeps
            hardly any state and takes steps relative to the weights' scale.
        patience: training ends after so many epochs without a lower loss on a tenth of the training data held out of it,
            with the best weights; 0 trains to the end.
        mixed_precision: train in bfloat16 where the machine computes in it.
        accumulate: batches whose gradients make one step of the optimizer, as if they were one batch.
        channels_last: images are kept with their channels last in memory; "auto" does so on a GPU in mixed precision; a
            study may find that it pays on a processor.
        compile: training is compiled by `torch.compile`; "auto" does so on a GPU where there are steps enough to make up for the time it takes.
        stored_teacher: of the teacher's outputs the largest logits are stored in float16, and learned from in every epoch and trial, where training
            data are the same every time they are read; elsewhere the teacher runs.
        penalty: strength of the steps of `SPARSIFYING`; 1 takes weights that nothing else moves to the policy's sparsity.
    """

    epochs: float = 0
    learning_rate: Positive = 0.01
    temperature: Positive = 4.0
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.7
    steps: Ordered[RecoveryStep] = ("prune", "train")
    distiller: Text = "soft"
    teachers: Listed[Text] = ()
    data: TrainingData = "train"
    mutual: bool = False
    schedule: Schedule = "one_cycle"
    optimizer: Optimizer = "sgd"
    patience: CountOrNone = 0
    mixed_precision: bool = False
    penalty: Positive = 1.0
    accumulate: Count = 1
    channels_last: Wanted = AUTO
    compile: Wanted = False
    stored_teacher: bool = False

    def __post_init__(self) -> None:
        self._check_pipeline()
        require(
            is_number(self.epochs) and self.epochs >= 0, f"recovery epochs must be a number >= 0, not {self.epochs!r}"
        )
        object.__setattr__(self, "epochs", epochs_of(self.epochs))
        for name in ("learning_rate", "temperature", "alpha", "penalty"):
            value = getattr(self, name)
            require(is_number(value), f"recovery {name} must be a number, not {value!r}")
            object.__setattr__(self, name, rounded(value))
        require(self.learning_rate > 0, f"recovery learning_rate must be > 0, not {self.learning_rate!r}")
        require(self.temperature > 0, f"recovery temperature must be > 0, not {self.temperature!r}")
        require(self.penalty > 0, f"recovery penalty must be > 0, not {self.penalty!r}")
        require(0 <= self.alpha <= 1, f"recovery alpha must lie in [0, 1], not {self.alpha!r}")

    def _check_pipeline(self) -> None:
        for name in ("steps", "teachers"):
            value = getattr(self, name)
            require(isinstance(value, (list, tuple)), f"recovery {name} must be a list, not {value!r}")
            object.__setattr__(self, name, tuple(value))
        for name, known in _NAMES.items():
            value = getattr(self, name)
            for part in value if isinstance(value, tuple) else (value,):
                require(part in known, f"recovery {name}: {part!r} is not one of {', '.join(known)}")
        self._check_order()
        require(all(isinstance(name, str) for name in (self.distiller, *self.teachers)), "recovery: names must be text")
        require(is_whole(self.patience) and self.patience >= 0, "recovery patience must be a whole number >= 0")
        self._check_computing()

    def _check_computing(self) -> None:
        for name in ("mutual", "mixed_precision", "stored_teacher"):
            require(isinstance(getattr(self, name), bool), f"recovery {name} must be true or false")
        for name in ("channels_last", "compile"):
            value = getattr(self, name)
            require(
                value in (True, False, AUTO) and not is_number(value), f"recovery {name} must be true, false or auto"
            )
        require(is_whole(self.accumulate) and self.accumulate >= 1, "recovery accumulate must be a whole number >= 1")

    def _check_order(self) -> None:
        """Require each step as often, and in such an order, as `steps` allows."""
        trainings = 0 if self.is_calibrated else 1
        bounds = {"prune": (1, 1), "quantize": (0, 1), "train": (trainings, len(self.steps))}
        for step, (least, most) in {**bounds, **dict.fromkeys((*POST_TRAINING, *SPARSIFYING), (0, 1))}.items():
            count = self.steps.count(step)
            require(least <= count <= most, f"recovery steps: {step!r} is there {count} times in {list(self.steps)}")
        sparsified = [index for index, step in enumerate(self.steps) if step in SPARSIFYING]
        end = min(self.steps.index(step) for step in ("prune", "quantize") if step in self.steps)
        for index in sparsified:
            require(index < end, f"recovery steps: {self.steps[index]!r} comes before prune and quantize")

    @property
    def is_calibrated(self) -> bool:
        """Whether a step reads the calibration split."""
        return any(step in POST_TRAINING for step in self.steps)

    @property
    def changes_weights(self) -> bool:
        """Whether there is anything to do after pruning."""
        return self.epochs > 0 or self.is_calibrated

    def reduced(self, quantized: bool) -> Recovery:
        """These settings without what decides nothing: training without epochs, grids where no layer is `quantized`."""
        steps = tuple(step for step in self.steps if quantized or step not in POST_TRAINING)
        if self.epochs and "train" in steps:
            return replace(self, steps=steps)
        calibrated: tuple[RecoveryStep, ...] = tuple(step for step in steps if step == "prune" or step in POST_TRAINING)
        return Recovery(steps=calibrated) if len(calibrated) > 1 else Recovery()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what came with later versions only where it says anything."""
        always = ("epochs", "learning_rate", "temperature", "alpha")
        values = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name in always or getattr(self, f.name) != f.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
