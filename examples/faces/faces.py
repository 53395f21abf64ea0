"""The last two networks of a face detector (MTCNN): is a crop a face, where exactly, and where are its eyes, nose and mouth?"""

from collections.abc import Mapping

import torch
from facenet_pytorch import ONet, RNet
from skimage.data import lfw_subset
from slimfront import Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

NETWORKS = {"rnet": (RNet, 24), "onet": (ONet, 48)}
"""A network and the side of its input in pixels."""

PARTS = {"train": (0, 50), "calibration": (50, 60), "validation": (60, 80), "test": (80, 100)}
"""The photographs of scikit-image's `lfw_subset` that a split is cut from: as many of its 100 faces as of its 100 other ones."""

SIDE, CUT = 25, 21
"""Pixels of a photograph's side, and of the squares that are cut from it."""

NEAR = 0.05
"""The largest distance of a corner, an eye, the nose or the mouth from where the uncompressed network sees it; 1 is a crop's side."""


def crops(split: str, side: int) -> tuple[Tensor, Tensor]:
    """Nine squares of each photograph and their mirror images: [n, 3, side, side] from -1 to 1, and 1 for a face, [n]."""
    part = slice(*PARTS[split])
    photographs = torch.tensor(lfw_subset(), dtype=torch.float32).reshape(2, 100, SIDE, SIDE)[
        :, part
    ]  # faces are first
    cuts = photographs.unfold(2, CUT, 2).unfold(3, CUT, 2).flatten(1, 3)
    cuts = torch.cat([cuts, cuts.flip(-1)], 1)
    labels = torch.tensor([[1], [0]]).expand(cuts.shape[:2]).flatten()
    images = functional.interpolate(cuts.flatten(0, 1)[:, None], (side, side), mode="bilinear", align_corners=False)
    return ((images * 255 - 127.5) / 128).expand(-1, 3, -1, -1).contiguous(), labels


@torch.no_grad()
def answered(model: nn.Module, split: str, side: int) -> TensorDataset:
    """Crops, and for each in a row: 1 for a face, and where the uncompressed network sees corners and landmarks."""
    images, labels = crops(split, side)
    *places, _ = model(images)
    return TensorDataset(images, torch.cat([labels[:, None], *places], 1))


def parted(outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Corners and landmarks in a row, [n, 4] or [n, 14], and the probability of a face, [n]."""
    *places, probabilities = outputs.values()
    return torch.cat(places, 1), probabilities[:, 1]


def detected(outputs: Mapping[str, Tensor], targets: Tensor) -> float:
    """The share of crops that are answered right: a face found, with everything in it in place, or another crop rejected."""
    places, probability = parted(outputs)
    is_face = targets[:, 0] > 0.5
    in_place = ((places - targets[:, 1:]).abs() <= NEAR).all(1)
    return float(torch.where(is_face, (probability > 0.5) & in_place, probability <= 0.5).float().mean())


def loss(outputs: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Cross-entropy of being a face, and squared distances in those that are."""
    places, probability = parted(outputs)
    distances = (places - targets[:, 1:]).square().mean(1) * targets[:, 0]
    return functional.binary_cross_entropy(probability, targets[:, 0]) + 10 * distances.mean()


def workload(network: str = "onet") -> Workload:
    """A network that facenet-pytorch ships, trained, and scikit-image's photographs."""
    kind, side = NETWORKS[network]
    model = kind().eval()
    splits = [answered(model, split, side) for split in PARTS]
    return Workload(model, *splits, example_inputs=splits[0][0][0][None], metric=detected, loss=loss)
