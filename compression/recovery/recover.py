"""Recovery pipelines: pruning, training and fake quantization in the order a policy gives them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...spaces.models.channel_groups import ChannelGroup
from ...spaces.models.layers import WeightedLayer, layer_at
from ...spaces.policies.candidate import QuantParams
from ...spaces.policies.policy import Policy
from ...spaces.policies.recovery import SPARSIFYING
from ...spaces.policies.resolved import effective_policy
from ...workloads.workload import Workload
from ..gradients import trainable_copy
from ..pruning.prune import kept_channels, reestimate_batch_norm
from ..quantization.fake_quantize import fake_quantized
from .checkpoint import Checkpoints
from .post_training import POST_TRAINING, calibrated
from .sparsify import AfterStep, sparsifier
from .train import Masks, training

Prune = Callable[[nn.Module], nn.Module]


def recover(
    student: nn.Module,
    workload: Workload,
    policy: Policy,
    seed: int,
    batch_size: int = 64,
    prune: Prune | None = None,
    groups: Sequence[ChannelGroup] = (),
    checkpoints: Checkpoints | None = None,
) -> nn.Module:
    """The model that the steps of `policy.recovery` make, in eval mode; the same seed gives the same weights.

    Args:
        student: the workload's model, pruned as `policy` says. Where pruning is the first step, it is changed in place and
            returned; else it is pruned anew in its turn.
        policy: in terms of the layers before pruning; where pruning is the first step, those after pruning will do.
        prune: makes the pruned copy of a model, where pruning is not the first step.
        groups: the channel groups of the workload's model, where a step comes before pruning.
        checkpoints: where its trainings are saved, and taken up if they were saved there before.

    "quantize" folds batch-norm and calibrates quantization parameters, on which all training after it computes
    (quantization-aware training, Jacob et al. 2018, arXiv:1712.05877); pruning after it calibrates them again. The steps of
    `POST_TRAINING` only read the calibration split. Weights that `policy` masked stay zero from pruning on.
    """
    *_, last = recovering(student, workload, policy, seed, batch_size, prune, groups, checkpoints)
    assert last is not None
    return last


def recovering(
    student: nn.Module,
    workload: Workload,
    policy: Policy,
    seed: int,
    batch_size: int = 64,
    prune: Prune | None = None,
    groups: Sequence[ChannelGroup] = (),
    checkpoints: Checkpoints | None = None,
) -> Iterator[nn.Module | None]:
    """`recover` as a generator, which yields None whenever it was saved, and the model at last."""
    if not policy.recovery.changes_weights:
        yield student
        return
    is_pruned = policy.recovery.steps[0] == "prune"
    model = student if is_pruned else trainable_copy(workload.model)
    pipeline = _Pipeline(model, workload, policy, seed, batch_size, checkpoints)
    for index, step in enumerate(policy.recovery.steps):
        if step == "prune":
            assert index == 0 or prune is not None, "a pipeline that prunes later needs the function that prunes"
            pipeline.prune(prune if index else None)
        elif step == "quantize":
            pipeline.quantize()
        elif step == "train":
            yield from pipeline.train()
        elif step in SPARSIFYING:
            kept = kept_channels(policy, groups)
            yield from pipeline.train(sparsifier(step, pipeline.model, workload.example_input, policy, kept))
        else:
            POST_TRAINING[step](pipeline.model, workload, pipeline.policy, seed)
    yield pipeline.model


class _Pipeline:
    """A model on its way through the steps of a recovery.

    Attributes:
        policy: in terms of the layers that the model has.
        grids: layer -> quantization parameters of its input; None before "quantize".
    """

    def __init__(
        self,
        model: nn.Module,
        workload: Workload,
        policy: Policy,
        seed: int,
        batch_size: int,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.model, self.workload, self.policy, self._checkpoints = model, workload, policy, checkpoints
        self.batch_size, self._is_pruned = batch_size, False
        self.grids: dict[str, QuantParams] | None = None
        trained = [step for step in policy.recovery.steps if step in ("train", *SPARSIFYING)]
        shares = _shares(policy.recovery.epochs, len(trained))
        self._trainings = iter([(seed + index, epochs) for index, epochs in enumerate(shares)])

    def prune(self, prune: Prune | None) -> None:
        """Prune the model, or take it as pruned where `prune` is None."""
        self.policy, self._is_pruned = effective_policy(self.policy), True
        if prune is not None:
            self.model = prune(self.model)
            reestimate_batch_norm(self.model, self.workload.calibration)
        if self.grids is not None:
            self.quantize()

    def quantize(self) -> None:
        """Calibrate the quantization parameters on which training computes from now on."""
        self.grids = calibrated(self.model, self.workload, self.policy)

    def train(self, after_step: AfterStep | None = None) -> Iterator[None]:
        """Train for the next share of the epochs, `after_step` changing the weights after each step of the optimizer."""
        seed, epochs = next(self._trainings)
        if epochs:
            masks = _masks(self.model, self.policy) if self._is_pruned else ()
            recovery = self.policy.recovery
            with nullcontext() if self.grids is None else fake_quantized(self.model, self.policy, self.grids):
                checkpoint = self._checkpoints and self._checkpoints.next()
                settings = recovery, epochs, seed, self.batch_size, masks, (), after_step, checkpoint
                for _ in training(self.model, self.workload, *settings):
                    if self._checkpoints is not None and self._checkpoints.take_new():
                        yield


def recover_by_rungs(
    student: nn.Module,
    workload: Workload,
    policy: Policy,
    seed: int,
    batch_size: int,
    marks: Collection[float],
    checkpoints: Checkpoints | None = None,
) -> Iterator[tuple[nn.Module | None, float]]:
    """`recovering` for pipelines that prune and then train, as a generator that also yields the model after the epochs in `marks`, of
    which the last may be a part.

    Training then continues under the schedule of the whole recovery: the last model is the one that `recover` makes. One that is taken up
    from a checkpoint yields no models from before that.

    Yields:
        the model in eval mode, not to be changed, and the epochs that it was trained for; None for the model whenever it was saved.
    """
    epochs, masks = policy.recovery.epochs, _masks(student, effective_policy(policy))
    checkpoint = checkpoints and checkpoints.next()
    for done in training(
        student, workload, policy.recovery, epochs, seed, batch_size, masks, marks, checkpoint=checkpoint
    ):
        if done in marks and done < epochs:
            yield student, done
        elif checkpoints is not None and checkpoints.take_new():
            yield None, done
    yield student, epochs


def _shares(epochs: float, trainings: int) -> list[float]:
    """The epochs of each training of a pipeline: whole ones where there are only such, the first ones having more."""
    if isinstance(epochs, int):
        return [epochs // trainings + (index < epochs % trainings) for index in range(trainings)]
    return [epochs / trainings] * trainings


def _masks(model: nn.Module, policy: Policy) -> Masks:
    """(weight, 1 where it is not zero) of every layer the policy sparsifies."""
    weights = [_stored_weight(layer_at(model, name)) for name, layer in policy.layers.items() if layer.sparsity]
    return [(weight, (weight != 0).to(weight.dtype)) for weight in weights]


def _stored_weight(layer: WeightedLayer) -> Tensor:
    """The weight that training moves, before its fake quantization."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.get_parameter("parametrizations.weight.original")
    return layer.weight
