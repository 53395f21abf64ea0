"""A regression on scikit-learn's digits: by how much is an image turned? Outputs are a number an image, [n]; scored by R2.

The network is the residual one of the built-in digits at half its width, trained once and kept in slimfront's cache.
"""

import math

import torch
from slimfront.core.threads import torch_threads
from slimfront.workloads.builtin.digits import digits_datasets
from slimfront.workloads.builtin.digits_model import DigitsResNet
from slimfront.workloads.cache import State, trained_once
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import TensorDataset

MOST = math.pi / 3
COPIES, EPOCHS, BATCH = 4, 12, 64
SEEDS = {"train": 0, "calibration": 1, "validation": 2, "test": 3}


class Turned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = DigitsResNet(16)
        self.body.fc = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).squeeze(-1)


def workload() -> Workload:
    model, data = Turned(), {split: turned(split) for split in SEEDS}
    model.load_state_dict(trained_once("turned-digits-1.safetensors", trained))
    return Workload(model.eval(), **data, example_input=data["train"].tensors[0][:1], metric="r2")


def turned(split: str) -> TensorDataset:
    """Images [1, 16, 16] with the angle, in radians, by which each is turned; of the training split four times as many."""
    images = digits_datasets()[split].tensors[0]
    images = images.repeat(COPIES if split == "train" else 1, 1, 1, 1)
    angles = (torch.rand(len(images), generator=torch.Generator().manual_seed(SEEDS[split])) * 2 - 1) * MOST
    zero = torch.zeros_like(angles)
    rows = [torch.stack([angles.cos(), -angles.sin(), zero], 1), torch.stack([angles.sin(), angles.cos(), zero], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return TensorDataset(functional.grid_sample(images, grid, padding_mode="border", align_corners=False), angles)


def trained() -> State:
    inputs, angles = turned("train").tensors
    generator = torch.Generator().manual_seed(0)
    with torch_threads(1), torch.random.fork_rng():
        torch.manual_seed(0)
        model = Turned()
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        schedule = OneCycleLR(optimizer, 3e-3, total_steps=EPOCHS * math.ceil(len(inputs) / BATCH))
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(inputs), generator=generator).split(BATCH):
                loss = functional.mse_loss(model(inputs[batch]), angles[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.state_dict()
