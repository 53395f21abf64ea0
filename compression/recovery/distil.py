"""Distillers: what a student imitates of its teacher, by the name that a study chooses.

A further distiller is a class here and its name in `DISTILLERS`, or an entry point in the group `slimfront.distillers`.

| name | imitates | source |
|---|---|---|
| soft | the teacher's softened outputs; values, as of a regression, by squared distance | Hinton et al. 2015, arXiv:1503.02531; Ba and Caruana 2014, arXiv:1312.6184 |
| hard | the class the teacher finds; values as soft does | Hinton et al. 2015, section 2, at temperature 0 |
| feature | soft, and what the last layer reads: L2 and cosine, through a projection where widths differ | Romero et al. 2015, arXiv:1412.6550 |
| relation | soft, and distances and angles between the samples of a batch | Park et al. 2019, arXiv:1904.05068 |
| attention | soft, and where in an image activations are strong | Zagoruyko and Komodakis 2017, arXiv:1612.03928 |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...core.batch import Batch
from ...core.errors import PolicyError
from ...core.registry import Registry
from ...workloads.output_kind import OutputKind
from .outputs import ONE_CLASSIFIER, OutputKinds

Tap = Literal["embedding", "maps"]
"""What a distiller reads of a network in addition to its outputs: the input of its last layer, or its last map of each resolution."""

Views = Sequence[Any]
"""The outputs of a network on a batch, a tensor [batch, ...] or one for each name, then the tensors of its taps."""


class Distiller(Protocol):
    """How far a student is from its teacher.

    Attributes:
        tap: what it reads in addition to the outputs, None for nothing.
    """

    tap: Tap | None

    def loss(self, student: Views, teacher: Views, projections: nn.ModuleList) -> Tensor:
        """A scalar; `projections` map the student's taps to the teacher's widths, one for each."""
        ...


class Soft:
    """See the table above.

    Attributes:
        outputs: what the networks' outputs mean; `get_distiller` sets it.
    """

    tap: Tap | None = None
    outputs: OutputKinds = ONE_CLASSIFIER

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def loss(self, student: Views, teacher: Views, projections: nn.ModuleList) -> Tensor:
        return self.of_outputs(student[0], teacher[0]) + self.beyond_outputs(student[1:], teacher[1:], projections)

    def of_outputs(self, student: Batch, teacher: Batch) -> Tensor:
        """What the outputs add to the loss."""
        return imitation_loss(student, teacher, self.temperature, self.outputs)

    def beyond_outputs(self, student: Views, teacher: Views, projections: nn.ModuleList) -> Tensor | float:
        """What the taps add to the loss."""
        return 0.0


class Hard(Soft):
    """See the table above."""

    def of_outputs(self, student: Batch, teacher: Batch) -> Tensor:
        return self.outputs.total(_of_classes_found, student, teacher)


class Feature(Soft):
    """See the table above."""

    tap: Tap | None = "embedding"

    def beyond_outputs(self, student: Views, teacher: Views, projections: nn.ModuleList) -> Tensor:
        return feature_loss(projections[0](student[0].flatten(1)), teacher[0].flatten(1))


class Relation(Soft):
    """See the table above; distances are weighted by 1 and angles by 2, as in the paper."""

    tap: Tap | None = "embedding"

    def beyond_outputs(self, student: Views, teacher: Views, projections: nn.ModuleList) -> Tensor:
        own, taught = student[0].flatten(1), teacher[0].flatten(1)
        return relation_loss(_distances(own), _distances(taught)) + 2 * relation_loss(_angles(own), _angles(taught))


class Attention(Soft):
    """See the table above; weighted by 1000 as in the paper."""

    tap: Tap | None = "maps"
    weight = 1000.0

    def beyond_outputs(self, student: Views, teacher: Views, projections: nn.ModuleList) -> Tensor | float:
        gaps = [
            (_attention(own) - _attention(taught)).square().mean() for own, taught in zip(student, teacher, strict=True)
        ]
        return self.weight * torch.stack(gaps).sum() if gaps else 0.0


def imitation_loss(student: Batch, teacher: Batch, temperature: float, kinds: OutputKinds) -> Tensor:
    """How far outputs are from the teacher's: `distillation_loss` over classes, squared distance for values; weighted over several."""

    def of_one(kind: OutputKind, own: Tensor, taught: Tensor) -> Tensor:
        if kind.class_axis is None:
            return kind.distance(own, taught)
        return distillation_loss(kind.logits(own), kind.logits(taught), temperature)

    return kinds.total(of_one, student, teacher)


def _of_classes_found(kind: OutputKind, own: Tensor, taught: Tensor) -> Tensor:
    """Cross-entropy against the classes that the teacher finds; squared distance for values."""
    if kind.class_axis is None:
        return kind.distance(own, taught)
    return functional.cross_entropy(kind.logits(own), kind.logits(taught).argmax(dim=-1))


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 x KL(teacher || student) of the logits softened by T (Hinton et al. 2015, arXiv:1503.02531, section 2).

    Args:
        student, teacher: logits, shape [batch, classes].
        temperature: T > 0; T^2 keeps the gradient's size independent of it.
    """
    return temperature**2 * functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance relative to the teacher's mean square, plus 1 - cosine; both [batch, width]."""
    distance = functional.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)
    return distance + (1 - functional.cosine_similarity(student, teacher, dim=-1)).mean()


def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Huber loss between relations of the same shape (Park et al. 2019, arXiv:1904.05068, equation 5)."""
    return functional.smooth_l1_loss(student, teacher)


def _distances(embedding: Tensor) -> Tensor:
    """Distances between samples [batch, batch], in units of their mean over different samples; 0 where all are the same."""
    gaps = (embedding.unsqueeze(0) - embedding.unsqueeze(1)).square().sum(-1)
    # The root of zero, a sample's distance from itself, has no gradient.
    distances = torch.where(gaps > 0, gaps.clamp_min(1e-12).sqrt(), 0.0)
    return distances / (distances.sum() / (gaps > 0).sum().clamp_min(1)).detach().clamp_min(1e-12)


def _angles(embedding: Tensor) -> Tensor:
    """Cosines of the angles between each two differences to each sample, [batch, batch, batch]."""
    directions = functional.normalize(embedding.unsqueeze(0) - embedding.unsqueeze(1), dim=-1)
    return directions @ directions.transpose(1, 2)


def _attention(activations: Tensor) -> Tensor:
    """Mean square over channels of [batch, channels, h, w], each image's map of length 1: [batch, h x w]."""
    return functional.normalize(activations.square().mean(dim=1).flatten(1), dim=1)


DISTILLERS: Registry[Callable[[float], Distiller]] = Registry(
    "distiller",
    "slimfront.distillers",
    PolicyError,
    {"soft": Soft, "hard": Hard, "feature": Feature, "relation": Relation, "attention": Attention},
)
"""Name -> distiller, made from the temperature."""

register_distiller = DISTILLERS.register
"""Make a distiller known by a name."""


def distillers() -> list[str]:
    """Names of the distillers there are."""
    return list(DISTILLERS)


def get_distiller(name: str, temperature: float, outputs: OutputKinds = ONE_CLASSIFIER) -> Distiller:
    """The distiller called `name`, softening outputs by `temperature`.

    Args:
        outputs: what the networks' outputs mean; distillers from outside that do not extend one of ours are given the outputs only.

    Raises:
        PolicyError: unknown, or its package cannot be imported.
    """
    distiller = DISTILLERS[name](temperature)
    if isinstance(distiller, Soft):
        distiller.outputs = outputs
    return distiller
