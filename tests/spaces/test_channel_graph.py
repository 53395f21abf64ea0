"""Attention, channel shuffles and concatenations: channels that go are the right ones."""

import copy

import pytest
import torch
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.spaces.models.channel_graph import ChannelGraph, channels_lost
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.policies.policy import Policy
from slimfront.workloads.attention import explicit_attention
from slimfront.workloads.builtin.digits_vit import DigitsViT
from torch import Tensor, nn
from torchvision.models.densenet import DenseNet
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.models.vision_transformer import VisionTransformer

IMAGE = torch.zeros(1, 3, 32, 32)


def shuffle_net() -> nn.Module:
    torch.manual_seed(0)
    return ShuffleNetV2([2, 2, 1], [24, 32, 64, 64, 128], num_classes=5).eval()


def dense_net() -> nn.Module:
    torch.manual_seed(0)
    return DenseNet(growth_rate=16, block_config=(2, 2), num_init_features=16, bn_size=2, num_classes=5).eval()


def vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5)
    return explicit_attention(model.eval(), IMAGE)


def test_a_shuffled_stream_is_left_out_and_what_lies_between_shuffles_is_not():
    groups, reasons = find_channel_groups(shuffle_net(), IMAGE)
    assert [group.name for group in groups if group.name.startswith("stage2")] == [
        "stage2.0.branch2.3",
        "stage2.1.branch2.3",
    ]
    assert reasons["stage2.1.branch2.5"].startswith("a view with more dimensions takes its channels apart")
    assert "conv5.0" in [group.name for group in groups]


@pytest.mark.parametrize("model", [shuffle_net(), dense_net()], ids=["shuffled", "concatenated"])
def test_removed_channels_leave_what_silenced_ones_would(model):
    """Without a norm over channels, a channel that is zero from its batch-norm on might as well be gone."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean)
    groups, _ = find_channel_groups(model, IMAGE)
    lost = {group.name: list(range(0, group.channels, 2)) for group in groups}
    images = torch.randn(2, 3, 32, 32)
    silenced, slim = copy.deepcopy(model), copy.deepcopy(model)
    graph = ChannelGraph(silenced, IMAGE)
    with torch.no_grad():
        for name, channels in lost.items():
            for reader, own, root in graph.readers(name):
                if isinstance(reader, (nn.Conv2d, nn.Linear)):
                    reader.weight[:, [i for i, r in zip(own, root, strict=True) if r in channels]] = 0
        ChannelGraph(slim, IMAGE).remove(lost)
        torch.testing.assert_close(slim(images), silenced(images), rtol=1e-4, atol=1e-5)


def test_half_the_heads_and_half_the_mlp_of_a_transformer_by_hand():
    model = vision_transformer()
    groups, reasons = find_channel_groups(model, IMAGE)
    assert [(group.name.removeprefix("encoder.layers.encoder_layer_"), group.channels, group.unit) for group in groups] == [
        ("0.self_attention", 4, "head"), ("0.mlp.0", 64, "channel"),
        ("1.self_attention", 4, "head"), ("1.mlp.0", 64, "channel"),
    ]  # fmt: skip
    assert len(reasons) == 2  # the output, and the width torchvision writes into its forward pass
    slim = pruned_copy(model, IMAGE, Policy(width=0.5), groups)
    gone = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in slim.parameters())
    head = 3 * 8 * 32 + 3 * 8 + 8 * 32  # its queries, keys and values, and its columns of the output projection
    assert gone == 2 * (2 * head + 32 * (32 + 1 + 32))
    assert slim(IMAGE).shape == (1, 5)


def test_the_weakest_head_goes():
    model = vision_transformer()
    attention = model.get_submodule("encoder.layers.encoder_layer_0.self_attention")
    with torch.no_grad():
        attention.out_proj.weight[:, 8:16] /= 100
        attention.in_proj.weight.view(3, 4, 8, 32)[:, 1] /= 100
    groups, _ = find_channel_groups(model, IMAGE)
    slim = pruned_copy(model, IMAGE, Policy(channels={"encoder.layers.encoder_layer_0.self_attention": 0.25}), groups)
    kept = slim.get_submodule("encoder.layers.encoder_layer_0.self_attention").out_proj.weight
    assert torch.equal(kept, attention.out_proj.weight[:, [*range(8), *range(16, 32)]])


def test_a_frozen_model_is_traced_and_stays_frozen():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 1)).requires_grad_(False)
    graph = ChannelGraph(model, IMAGE)
    assert list(graph.groups) == ["0", "2"]
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Unwrapped(nn.Module):
    """A learned vector that is added to the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 2)
        self.position = nn.Parameter(torch.arange(16.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) + self.position)


def test_a_parameter_outside_layers_loses_the_same_channels():
    model = Unwrapped()
    ChannelGraph(model, torch.zeros(1, 6)).remove({"first": [0, 1, 2, 3, 8]})
    assert model.position.tolist() == [4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15]
    assert model(torch.zeros(1, 6)).shape == (1, 2)


def test_every_partition_loses_the_same_numbers_by_hand():
    scores = torch.tensor([5.0, 1.0, 3.0, 1.0, 9.0, 2.0])  # means of the two halves: 3, 5, 2.5
    assert channels_lost(scores, 4, partitions=2) == [2, 5]
    assert channels_lost(scores, 4) == [1, 3]


def test_the_width_of_a_transformer_is_a_group_where_its_forward_does_not_count():
    torch.manual_seed(0)
    model, digit = DigitsViT(width=32, depth=2, heads=4, hidden=64).eval(), torch.randn(1, 1, 16, 16)
    groups, reasons = find_channel_groups(model, digit)
    assert ("blocks.1.fc2", 32) in [(group.name, group.channels) for group in groups]
    assert reasons == {"fc": "its channels are the model's output"}
    slim = pruned_copy(model, digit, Policy(width=0.5), groups)
    block = slim.blocks[0]
    shapes = [layer.weight.shape for layer in (block.attention.in_proj, block.attention.out_proj, block.fc1, block.fc2)]
    assert shapes == [(3 * 16, 16), (16, 16), (32, 16), (16, 32)]
    assert slim.position.shape == (1, 16, 16)
    assert slim(digit).shape == (1, 10)


class Branches(nn.Module):
    """A wide layer is added to what two narrow ones concatenate."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.one, self.other = nn.Conv2d(3, 24, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1)
        self.last = nn.Conv2d(24, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.wide(x) + torch.cat([self.one(x), self.other(x)], 1))


def test_the_best_channel_of_each_branch_stays():
    model, example = Branches().eval(), torch.zeros(1, 3, 2, 2)
    graph = ChannelGraph(model, example)
    scores = torch.arange(24.0)  # all of one branch are lower than those of the other
    name = graph.root_of("wide")
    lost = graph.least(name, scores, 8)
    assert lost == [*range(7), *range(8, 17)]
    graph.remove({name: lost})
    assert (model.one.out_channels, model.other.out_channels, model(example).shape[1]) == (1, 7, 2)
