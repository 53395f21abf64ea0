"""What covers the ground in an aerial picture: grass, gravel or brick, pixel by pixel. Run it once to train the network."""

from pathlib import Path

import torch
from skimage import data
from slimfront import Workload
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

GROUNDS = ("grass", "gravel", "brick")
"""The photographs that scikit-image ships, 512 x 512 pixels in grey each; a class is a photograph's ground."""

SIZE = 64
COLUMNS = {"train": (0, 256), "calibration": (256, 320), "validation": (320, 416), "test": (416, 512)}
"""The columns of every photograph that a split's pictures are cut from: no pixel is in two splits."""

CHECKPOINT = Path("ground.pt")


def pictures(split: str, count: int, seed: int) -> TensorDataset:
    """Pictures [count, 1, 64, 64] in which grounds meet at random curves, and each pixel's ground [count, 64, 64]."""
    generator = torch.Generator().manual_seed(seed)
    grounds = torch.stack([_cuts(name, split, count, generator) for name in GROUNDS], 1)
    masks = _curves(count, generator).argmax(1)
    return TensorDataset(grounds.gather(1, masks[:, None]), masks)


def _cuts(ground: str, split: str, count: int, generator: torch.Generator) -> Tensor:
    """Squares [count, 64, 64] of a photograph, each with mean 0 and deviation 1: brightness does not give a ground away."""
    first, last = COLUMNS[split]
    columns = torch.tensor(getattr(data, ground)()[:, first:last] / 255, dtype=torch.float32)
    squares = columns.unfold(0, SIZE, 1).unfold(1, SIZE, 1).flatten(0, 1)
    chosen = squares[torch.randint(len(squares), (count,), generator=generator)]
    return (chosen - chosen.mean((1, 2), keepdim=True)) / chosen.std((1, 2), keepdim=True)


def _curves(count: int, generator: torch.Generator) -> Tensor:
    """A smooth random field for each ground, [count, 3, 64, 64]; a pixel's ground is that of the highest."""
    coarse = torch.randn(count, len(GROUNDS), 4, 4, generator=generator)
    return functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic", align_corners=True)


class Convolutions(nn.Sequential):
    """Two 3 x 3 convolutions, each with batch-norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """Maps [n, 1, h, w] to logits [n, 3, h, w], h and w multiples of 8 (Ronneberger et al. 2015, arXiv:1505.04597)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(map(Convolutions, [1, *widths[:-1]], widths))
        self.pool = nn.MaxPool2d(2)
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(deep, shallow, 2, stride=2) for deep, shallow in steps)
        self.up = nn.ModuleList(Convolutions(2 * shallow, shallow) for _, shallow in steps)
        self.head = nn.Conv2d(width, len(GROUNDS), 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = [x := self.down[0](x)]
        for convolutions in self.down[1:]:
            kept.append(x := convolutions(self.pool(x)))
        kept.pop()
        for enlarge, convolutions in zip(self.enlarge, self.up, strict=True):
            x = convolutions(torch.cat([enlarge(x), kept.pop()], 1))
        return self.head(x)


def workload() -> Workload:
    """The trained network and its data, as study.yaml names it."""
    model = UNet()
    model.load_state_dict(torch.load(CHECKPOINT, weights_only=True))
    train, calibration = pictures("train", 160, 0), pictures("calibration", 64, 1)
    validation, test = pictures("validation", 100, 2), pictures("test", 100, 3)
    return Workload(model.eval(), train, calibration, validation, test, train[0][0][None], metric="miou")


def train(epochs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    model, loader = UNet(), DataLoader(pictures("train", 160, 0), batch_size=8, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, epochs * len(loader))
    for _ in range(epochs):
        for images, masks in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(images), masks).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


if __name__ == "__main__":
    trained, (images, masks) = train(), pictures("test", 100, 3).tensors
    torch.save(trained.state_dict(), CHECKPOINT)
    with torch.no_grad():
        right = trained(images).argmax(1) == masks
    print(f"pixels of the test split whose ground is found: {float(right.float().mean()):.4f}")
