"""Recovery pipelines: pruning, training and fake quantization in the order a policy gives them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...spaces.models.layers import WeightedLayer, layer_at
from ...spaces.policies.candidate import QuantParams
from ...spaces.policies.policy import Policy
from ...spaces.policies.resolved import effective_policy
from ...workloads.workload import Workload
from ..gradients import trainable_copy
from ..pruning.prune import reestimate_batch_norm
from ..quantization.fake_quantize import fake_quantized
from .post_training import POST_TRAINING, calibrated
from .train import Masks, train, training

Prune = Callable[[nn.Module], nn.Module]


def recover(
    student: nn.Module,
    workload: Workload,
    policy: Policy,
    seed: int,
    batch_size: int = 64,
    prune: Prune | None = None,
) -> nn.Module:
    """The model that the steps of `policy.recovery` make, in eval mode; the same seed gives the same weights.

    Args:
        student: the workload's model, pruned as `policy` says. Where pruning is the first step, it is changed in place and
            returned; else it is pruned anew in its turn.
        policy: in terms of the layers before pruning; one in terms of those behind it does where pruning is the first step.
        prune: makes the pruned copy of a model, where pruning is not the first step.

    "quantize" folds batch-norm and calibrates grids, and all training behind it computes on them (quantization-aware
    training, Jacob et al. 2018, arXiv:1712.05877); pruning behind it calibrates them anew. The steps of `POST_TRAINING` only read the
    calibration split. Weights that `policy` masked stay zero from pruning on.
    """
    recovery = policy.recovery
    if not recovery.changes_weights:
        return student
    trainings = recovery.steps.count("train")
    shares = [recovery.epochs // trainings + (i < recovery.epochs % trainings) for i in range(trainings)]
    model = student if recovery.steps[0] == "prune" else trainable_copy(workload.model)
    grids: dict[str, QuantParams] | None = None
    for index, step in enumerate(recovery.steps):
        if step == "prune":
            policy = effective_policy(policy)  # in terms of the layers that are there from now on
            if index > 0:
                assert prune is not None, "a pipeline that prunes later has to be told how"
                model = prune(model)
                reestimate_batch_norm(model, workload.calibration)
            if grids is not None:
                grids = calibrated(model, workload, policy)
        elif step == "quantize":
            grids = calibrated(model, workload, policy)
        elif step in POST_TRAINING:
            POST_TRAINING[step](model, workload, policy, seed)
        elif step == "train" and (epochs := shares.pop(0)):
            is_pruned = "prune" in recovery.steps[: index + 1]
            _train(model, workload, policy, epochs, seed + trainings - len(shares) - 1, batch_size, grids, is_pruned)
    return model


def recover_by_rungs(
    student: nn.Module, workload: Workload, policy: Policy, seed: int, batch_size: int, marks: Collection[float]
) -> Iterator[tuple[nn.Module, float]]:
    """`recover` for pipelines that prune and then train, with a look at the model after so many epochs as in `marks`;
    one below 1 is that part of the training data.

    Training goes on from where it was, under the schedule of the whole recovery: the last model is the one `recover` makes.

    Yields:
        the model in eval mode, not to be changed, and the epochs behind it.
    """
    epochs, masks = policy.recovery.epochs, _masks(student, effective_policy(policy))
    for done in training(student, workload, policy.recovery, epochs, seed, batch_size, masks, marks):
        if done in marks and done < epochs:
            yield student, done
    yield student, epochs


def _train(
    model: nn.Module,
    workload: Workload,
    policy: Policy,
    epochs: int,
    seed: int,
    batch_size: int,
    grids: Mapping[str, QuantParams] | None,
    is_pruned: bool,
) -> None:
    with nullcontext() if grids is None else fake_quantized(model, policy, grids):
        train(model, workload, policy.recovery, epochs, seed, batch_size, _masks(model, policy) if is_pruned else ())


def _masks(model: nn.Module, policy: Policy) -> Masks:
    """(weight, 1 where it is not zero) of every layer the policy sparsifies."""
    weights = [_stored_weight(layer_at(model, name)) for name, layer in policy.layers.items() if layer.sparsity]
    return [(weight, (weight != 0).to(weight.dtype)) for weight in weights]


def _stored_weight(layer: WeightedLayer) -> Tensor:
    """The weight that training moves, before its fake quantization."""
    if parametrize.is_parametrized(layer, "weight"):
        return layer.get_parameter("parametrizations.weight.original")
    return layer.weight
