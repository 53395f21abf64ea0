"""Float graphs of networks that the exporter got wrong: found by generated models, each of its kind once."""

import numpy as np
import onnxruntime
import pytest
import torch
from slimfront.hardware_profiles.runtimes.onnx.float_graph import export_float
from torch import Tensor, nn

IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class NormOfChannels(nn.LayerNorm):
    """Moves the channels to the end and back, by axes that are counted from there."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Twice(nn.Module):
    """A convolution that runs twice; a batch-norm follows its second run only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.conv(x).tanh()))


class Plain(nn.Module):
    """A batch-norm without weights after a convolution without bias, whose output is the model's too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        return self.norm(made) + made


class Bag(nn.Module):
    """Sums of rows of a table, which the exporter writes as a loop that reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(2, 5, mode="sum")

    def forward(self, x: Tensor) -> Tensor:
        return self.bag((x > 0).long().flatten(1))


class Attending(nn.Module):
    """Attention with a key of its own, whose two products are of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, add_bias_kv=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x[:, 0], x[:, 1], x[:, 2])[0]


class Shared(nn.Module):
    """Heads of queries that share keys and values, by the flag of torch; a transposed matrix in front, which `mT` makes."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x.mT, x[:, :4], x[:, 4:], enable_gqa=True)


class Stepped(nn.Module):
    """A cell of a recurrent network, which multiplies twice in each of its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x[:, 1, 1], self.cell(x[:, 0, 0]))


class Numbered(nn.Module):
    """Counts the numbers above zero along the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).cumsum(-1) + x.cumsum(1, dtype=torch.float32)


NETWORKS = {
    "attention with a key of its own": Attending(),
    "shuffled channels": nn.ChannelShuffle(2),
    "sums of truths": Numbered(),
    "heads that share keys": Shared(),
    "a cell that runs twice": Stepped(),
    "read in a loop": Bag(),
    "axes from behind": nn.Sequential(NormOfChannels(8), nn.GroupNorm(4, 8)),
    "one of two runs": Twice(),
    "read twice": Plain(),
    "no weights": nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8, affine=False)),
    "statistics of the batch": nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8, track_running_stats=False)),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_the_float_graph_computes_what_torch_does(network: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), network).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.2, 1.2)
    session = onnxruntime.InferenceSession(
        export_float(model, IMAGES).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    with torch.no_grad():
        expected = model(IMAGES).numpy()
    np.testing.assert_allclose(session.run(None, {"input": IMAGES.numpy()})[0], expected, rtol=1e-3, atol=1e-3)


def test_a_norm_after_the_only_run_of_a_convolution_is_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    assert [node.op_type for node in export_float(model, IMAGES).graph.node] == ["Conv", "Relu"]
