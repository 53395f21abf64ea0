"""Criteria, global ranking, blocks, compact operators, merging and gradual pruning, against numbers worked out otherwise."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from slimfront.compression.pruning.channels import remove_channels
from slimfront.compression.pruning.criteria import Magnitude, criteria, get_criterion, register_criterion
from slimfront.compression.pruning.gradual import cubic, gradually_pruned
from slimfront.compression.pruning.operators import grouped, low_rank, replace_operators, separable
from slimfront.compression.pruning.prune import global_masks, mask_weight, pruned_copy
from slimfront.core.errors import CompressionError
from slimfront.spaces.models.blocks import block_influence, find_removable_blocks, least_influential_first
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.pruning import Pruning
from slimfront.spaces.policies.resolved import effective_policy
from slimfront.workloads.builtin.digits_model import DigitsResNet
from slimfront.workloads.builtin.digits_vit import DigitsViT
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import TensorDataset

DIGIT = torch.zeros(1, 1, 16, 16)


def two_layers() -> nn.Sequential:
    """Sixteen hidden features whose worth is known to each criterion."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).eval()


def workload(model: nn.Module, inputs: Tensor, targets: Tensor) -> Workload:
    data = TensorDataset(inputs, targets)
    return Workload(model, data, data, data, data, inputs[:1])


@pytest.fixture(scope="module")
def digits() -> Workload:
    torch.manual_seed(0)
    return workload(DigitsResNet(16).eval(), torch.randn(64, 1, 16, 16), torch.randint(0, 10, (64,)))


@pytest.fixture(scope="module")
def groups(digits):
    return find_channel_groups(digits.model, DIGIT)[0]


def kept_features(model: nn.Sequential, criterion: str, **options) -> list[int]:
    first = model[0].weight.detach().clone()
    slim = pruned_copy(
        model,
        torch.zeros(1, 4),
        Policy(width=0.5, pruning=Pruning(criterion)),
        find_channel_groups(model, torch.zeros(1, 4))[0],
        **options,
    )
    return [row for row in range(16) if any(torch.equal(first[row], left) for left in slim[0].weight)]


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_magnitude_sums_over_all_that_goes_with_a_feature(criterion, power):
    model = two_layers()
    worth = (model[0].weight.abs() ** power).sum(1) + (model[3].weight.abs() ** power).sum(0) + 1  # 1: the norm's scale
    assert kept_features(model, criterion) == sorted(worth.topk(8).indices.tolist())


class Folded(nn.Module):
    """A layer whose 32 features are folded into images of 8 channels, which Torch-Pruning finds after the reader of 32 others."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8)
        self.linear, self.head = nn.Linear(5, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.depthwise(self.linear(x).view(len(x), -1, 2, 2)).flatten(1))


@pytest.mark.parametrize("criterion", ["l1", "taylor", "bn_scale"])
def test_scores_are_of_channels_where_layers_have_several_features_of_each(criterion):
    model, inputs = Folded().eval(), torch.randn(6, 5)
    groups, _ = find_channel_groups(model, inputs[:1])
    policy = Policy(channels={"depthwise": 0.5}, pruning=Pruning(criterion, multiple=4))
    slim = pruned_copy(model, inputs[:1], policy, groups, workload(model, inputs, torch.randint(0, 3, (6,))))
    assert (slim.depthwise.out_channels, slim.linear.out_features, slim.head.in_features) == (4, 16, 16)
    if criterion == "l1":
        worth = [w.abs().reshape(8, -1).sum(1) for w in (model.linear.weight, model.head.weight.T.contiguous())]
        best = sum(worth).topk(4).indices.sort().values
        assert torch.equal(slim.linear.bias, model.linear.bias.view(8, 4)[best].flatten())


def test_batch_norm_scale_alone_decides():
    model = two_layers()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, -9, 2, 8, 3, 7, 4, 6] * 2))
    assert kept_features(model, "bn_scale") == [1, 3, 5, 7, 9, 11, 13, 15]


def test_taylor_is_the_first_order_change_of_the_loss():
    model, inputs, targets = two_layers(), torch.randn(20, 4), torch.randint(0, 3, (20,))
    twin = copy.deepcopy(model)
    nn.functional.cross_entropy(twin(inputs), targets).backward()
    changes = [
        (twin[0].weight * twin[0].weight.grad).sum(1).abs(),
        (twin[1].weight * twin[1].weight.grad).abs(),
        (twin[3].weight * twin[3].weight.grad).sum(0).abs(),
    ]
    worth = torch.stack(changes).sum(0)
    assert kept_features(model, "taylor", workload=workload(model, inputs, targets)) == sorted(
        worth.topk(8).indices.tolist()
    )


def test_weights_are_ranked_by_taylor_where_heads_and_dense_layers_gave_way():
    torch.manual_seed(0)
    model = nn.Sequential(DigitsViT(), nn.Linear(10, 10)).eval().requires_grad_(False)
    task = workload(model, torch.randn(8, 1, 16, 16), torch.arange(8))
    groups, _ = find_channel_groups(model, DIGIT)
    attention = next(group.name for group in groups if group.unit == "head")
    layers = {f"{attention}.out_proj": LayerPolicy(sparsity=0.5), "1": LayerPolicy(sparsity=0.5, operator="rank=0.5")}
    policy = Policy(channels={attention: 0.5}, layers=layers, pruning=Pruning("taylor"))
    slim = pruned_copy(model, DIGIT, policy, groups, task)
    # The same model without zeros, and which of its weights change the loss least.
    dense = replace(policy, layers={"1": LayerPolicy(operator="rank=0.5")})
    twin = pruned_copy(model, DIGIT, dense, groups, task)
    nn.functional.cross_entropy(twin(task.train.tensors[0]), task.train.tensors[1]).backward()
    for name in (f"{attention}.out_proj", "1.0", "1.1"):
        weight = twin.get_submodule(name).weight
        worth = (weight * weight.grad).abs().flatten()
        left = slim.get_submodule(name).weight.flatten() != 0
        assert worth[left].min() >= worth[~left].max()
        assert int(left.sum()) == len(worth) // 2


def test_random_depends_on_the_seed_alone():
    model = two_layers()
    assert kept_features(model, "random", seed=1) == kept_features(model, "random", seed=1)
    assert kept_features(model, "random", seed=1) != kept_features(model, "random", seed=2)


def test_gradients_are_asked_for():
    with pytest.raises(CompressionError, match="taylor needs gradients"):
        kept_features(two_layers(), "taylor")


def test_the_registry_names_what_it_knows():
    assert criteria() == ["bn_scale", "l1", "l2", "random", "taylor"]
    with pytest.raises(
        CompressionError, match="unknown criterion 'fisher'; known are bn_scale, l1, l2, random, taylor"
    ):
        get_criterion("fisher")
    with pytest.raises(CompressionError, match="'l2' is already registered; known are bn_scale"):
        register_criterion("l2", Magnitude())


def test_global_ranking_by_hand():
    scores = {"a": torch.tensor([1.0, 5, 6, 7]), "b": torch.tensor([[2.0, 3], [4, 9]])}
    masks = global_masks(scores, {"a": 0.5, "b": 0.25})  # three of eight
    assert masks["a"].tolist() == [0, 1, 1, 1]
    assert masks["b"].tolist() == [[0, 0], [1, 1]]


def test_a_threshold_is_in_standard_deviations():
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, -3.0], [1.0, -1.0]]))  # standard deviation sqrt(20 / 3) = 2.58
    mask_weight(layer, "<0.5std")
    assert layer.weight.tolist() == [[3, -3], [0, 0]]


def test_blocks_are_those_an_identity_may_stand_for(digits):
    assert find_removable_blocks(digits.model, DIGIT) == ["blocks.0", "blocks.1", "blocks.3", "blocks.5"]


def test_block_influence_is_one_minus_the_mean_cosine():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)) for _ in range(3)))
    batches = torch.randn(4, 5, 3, 6).unbind(0)  # four batches of five samples of three tokens
    found = block_influence(model, batches, ["0", "2"])
    read = torch.cat(batches)
    with torch.no_grad():
        pairs = {"0": (read, model[0](read)), "2": (model[:2](read), model(read))}
    for name, (a, b) in pairs.items():
        a, b = a.numpy().reshape(-1, 6), b.detach().numpy().reshape(-1, 6)
        cosines = (a * b).sum(1) / (a**2).sum(1) ** 0.5 / (b**2).sum(1) ** 0.5
        assert found[name] == pytest.approx(1 - cosines.mean(), abs=1e-5)


def test_of_equally_idle_blocks_the_last_goes_first():
    assert least_influential_first({"a": 0.2, "b": 0.1, "c": 0.2, "d": 0.0}) == ["d", "b", "c", "a"]


def test_a_removed_block_takes_its_layers_and_groups_along(digits, groups):
    policy = Policy(width=0.5, removed_blocks=("blocks.1",), layers={"blocks.1.conv1": LayerPolicy(8, 8)})
    slim = pruned_copy(digits.model, DIGIT, policy, groups)
    smaller = DigitsResNet(8)
    smaller.blocks[1] = nn.Identity()
    assert [p.shape for p in slim.parameters()] == [p.shape for p in smaller.parameters()]
    assert effective_policy(policy).layers == {}


class Masked(nn.Module):
    """Blocks that read a mask next to what they change, as those of Transformers do, by position or by name."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, states: Tensor, mask: Tensor) -> Tensor:
            return states + self.down(self.up(states).relu() * mask)

    def __init__(self, by_name: bool) -> None:
        super().__init__()
        self.by_name, self.layers = by_name, nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, states: Tensor) -> Tensor:
        mask = (states[..., :1] > 0).float()
        for layer in self.layers:
            states = layer(states=states, mask=mask) if self.by_name else layer(states, mask)
        return states


@pytest.mark.parametrize("by_name", [False, True], ids=["by position", "by name"])
def test_a_block_that_reads_a_mask_too_is_removable(by_name):
    torch.manual_seed(0)
    model, inputs = Masked(by_name).eval(), torch.randn(4, 5, 6)
    assert find_removable_blocks(model, inputs) == ["layers.0", "layers.1", "layers.2"]
    assert set(block_influence(model, [inputs], ["layers.1"])) == {"layers.1"}
    slim = pruned_copy(model, inputs[:1], Policy(removed_blocks=("layers.1",)), [])
    del model.layers[1]
    torch.testing.assert_close(slim(inputs), model(inputs))


@pytest.mark.parametrize("groups", [1, 2])
def test_full_rank_and_own_groups_lose_nothing(groups):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    blocks = torch.zeros(6, 4, 1, 1)
    for group in range(groups):
        blocks[6 // groups * group : 6 // groups * (group + 1), 4 // groups * group : 4 // groups * (group + 1)] = 1
    with torch.no_grad():
        layer.weight.mul_(blocks)
        images = torch.randn(2, 4, 8, 8)
        torch.testing.assert_close(grouped(layer, groups)(images), layer(images))
        torch.testing.assert_close(low_rank(layer, 1.0)(images), layer(images), rtol=1e-4, atol=1e-5)


def test_low_rank_leaves_the_singular_values_beyond_it():
    torch.manual_seed(0)
    layer = nn.Linear(8, 12)
    product = low_rank(layer, 0.25)
    left = layer.weight - product[1].weight @ product[0].weight
    values = torch.linalg.svdvals(layer.weight)
    assert product[0].weight.shape == (2, 8)
    torch.testing.assert_close(left.norm(), values[2:].norm(), rtol=1e-4, atol=0)
    assert torch.equal(product[1].bias, layer.bias)


def test_a_separable_kernel_is_found_again():
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 5, 3, padding=1)
    filters, mix = torch.randn(3, 3, 3), torch.randn(5, 3)
    with torch.no_grad():
        layer.weight.copy_(mix[:, :, None, None] * filters)
        images = torch.randn(2, 3, 8, 8)
        compact = separable(layer)
        torch.testing.assert_close(compact(images), layer(images), rtol=1e-4, atol=1e-4)
    assert sum(p.numel() for p in compact.parameters()) == 3 * 9 + 5 * 3 + 5


def test_an_operator_that_cannot_stand_is_reported_in_one_line(digits, groups):
    policy = Policy(layers={"fc": LayerPolicy(operator="separable")})
    with pytest.raises(CompressionError, match=r"^separable cannot replace fc: the layer is not a convolution$"):
        pruned_copy(digits.model, DIGIT, policy, groups)


def test_merging_a_multiple_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3, bias=False)).eval()
    with torch.no_grad():
        model[0].bias.zero_()
        model[0].weight[8:] = model[0].weight[:8] * 0.25  # each a quarter of another, which a ReLU keeps
        inputs = torch.randn(5, 4)
        expected = model(inputs)
    merged, dropped = copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(merged, inputs[:1], {"0": 8}, reduction="merge")
    remove_channels(dropped, inputs[:1], {"0": 8})
    with torch.no_grad():
        torch.testing.assert_close(merged(inputs), expected)
        assert (dropped(inputs) - expected).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["linear", "convolution", "recurrent"])
def test_reconstruction_is_the_least_squares_of_what_readers_read(kind):
    torch.manual_seed(0)
    if kind == "linear":
        model, inputs = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3)), torch.randn(60, 6)
    elif kind == "convolution":
        model = nn.Sequential(nn.Conv2d(2, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1))
        inputs = torch.randn(8, 2, 6, 6)
    else:  # every run of a layer counts
        model, inputs = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(20, 3, 6)
    model.eval()
    with torch.no_grad():
        read = model[:-1](inputs)
    first, last = model[0].weight.detach().clone(), model[-1].weight.detach().clone()
    slim = copy.deepcopy(model)
    remove_channels(slim, inputs[:1], {"0": 8}, reduction="reconstruct", batches=inputs.split(4))
    kept = [row for row in range(16) if any(torch.equal(first[row], left) for left in slim[0].weight)]
    gone = [row for row in range(16) if row not in kept]
    rows = read.transpose(0, 1).flatten(1).T if kind == "convolution" else read.flatten(0, -2)
    fitted = LinearRegression(fit_intercept=False).fit(rows[:, kept].numpy(), rows[:, gone].numpy())
    share = torch.tensor(fitted.coef_)  # [gone, kept]
    expected = last[:, kept] + torch.einsum("og...,gk->ok...", last[:, gone], share)
    torch.testing.assert_close(slim[-1].weight, expected, rtol=1e-3, atol=1e-4)


def test_channels_that_are_combinations_of_others_are_gone_without_a_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Identity(), nn.Linear(16, 3)).eval()  # of rank 8
    inputs = torch.randn(30, 8)
    slim, dropped = copy.deepcopy(model), copy.deepcopy(model)
    remove_channels(slim, inputs[:1], {"0": 8}, reduction="reconstruct", batches=[inputs])
    remove_channels(dropped, inputs[:1], {"0": 8})
    with torch.no_grad():
        torch.testing.assert_close(slim(inputs), model(inputs), rtol=1e-3, atol=1e-4)
        assert (dropped(inputs) - model(inputs)).abs().max() > 0.1


def test_reconstruction_asks_for_data(digits, groups):
    policy = Policy(width=0.5, pruning=Pruning(reduction="reconstruct"))
    with pytest.raises(CompressionError, match=r"^reconstructing channels needs the calibration data of a workload$"):
        pruned_copy(digits.model, DIGIT, policy, groups)
    assert pruned_copy(digits.model, DIGIT, policy, groups, digits)(DIGIT).shape == (1, 10)


@pytest.mark.parametrize("bias", [True, False])
def test_principal_components_are_those_of_the_layers_outputs(bias):
    torch.manual_seed(0)
    layer = nn.Linear(12, 8, bias=bias)
    model, inputs = nn.Sequential(nn.Flatten(), layer).eval(), torch.randn(100, 12) @ torch.randn(12, 12) + 1
    with torch.no_grad():
        made = model(inputs)
    replace_operators(model, {"1": "pca=0.5"}, inputs.split(30))
    components = PCA(4).fit(made.numpy())
    expected = components.inverse_transform(components.transform(made.numpy()))
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), torch.tensor(expected, dtype=torch.float32), rtol=1e-3, atol=1e-3)
    assert [model[1][0].out_features, model[1][0].bias, model[1][1].in_features] == [4, None, 4]


def test_principal_components_lose_less_than_singular_values_where_inputs_vary_little(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2, bias=False)).eval()
    inputs = torch.randn(20, 2, 9, 9).repeat_interleave(2, 1)[:, :3]  # two of the three channels are one
    with torch.no_grad():
        expected = model(inputs)
    losses = {}
    for choice in ("rank=0.25", "pca=0.25"):
        compact = copy.deepcopy(model)
        replace_operators(compact, {"0": choice}, [inputs])
        with torch.no_grad():
            losses[choice] = (compact(inputs) - expected).square().mean()
    assert losses["pca=0.25"] < 0.8 * losses["rank=0.25"]
    with pytest.raises(CompressionError, match=r"^principal components need the calibration data"):
        pruned_copy(digits.model, DIGIT, Policy(layers={"fc": LayerPolicy(operator="pca=0.5")}), [])


def test_the_cubic_by_hand():
    assert [cubic(step, 4) for step in (1, 2, 3, 4)] == [1 - 27 / 64, 1 - 8 / 64, 1 - 1 / 64, 1]


def test_gradual_pruning_trains_in_between_and_ends_where_pruning_at_once_does(digits, groups):
    policy = Policy(
        width=0.5,
        layers={"fc": LayerPolicy(sparsity=0.5), "blocks.0.conv1": LayerPolicy(operator="rank=0.5")},
        recovery=Recovery(1),
        pruning=Pruning(steps=3),
        removed_blocks=("blocks.1",),
    )
    widths = []
    slim = gradually_pruned(digits, policy, groups, lambda model, _: widths.append(model.blocks[5].conv1.out_channels))
    once = pruned_copy(digits.model, DIGIT, policy, groups)
    assert widths == [40, 32]  # of 64, kept 1 - 19/27 / 2 = 0.648 and 1 - 26/27 / 2 = 0.519, in eights
    assert {n: p.shape for n, p in slim.named_parameters()} == {n: p.shape for n, p in once.named_parameters()}
    assert int((slim.fc.weight == 0).sum()) == int((once.fc.weight == 0).sum())


POLICIES = {
    "merge and rank": Policy(
        width=0.75,
        layers={"blocks.2.conv2": LayerPolicy(operator="rank=0.5"), "fc": LayerPolicy(sparsity="<0.5std")},
        pruning=Pruning(reduction="merge"),
        removed_blocks=("blocks.3",),
    ),
    "random and global": Policy(
        channels={"blocks.4.conv1": 0.5},
        layers={"blocks.0.conv2": LayerPolicy(sparsity=0.5), "blocks.5.conv2": LayerPolicy(sparsity=0.25)},
        pruning=Pruning("random", "global"),
    ),
    "by data": Policy(
        width=0.75,
        layers={"blocks.2.conv2": LayerPolicy(operator="pca=0.5")},
        pruning=Pruning(reduction="reconstruct"),
    ),
    "compact": Policy(
        layers={
            "blocks.0.conv1": LayerPolicy(operator="separable"),
            "blocks.1.conv1": LayerPolicy(operator="groups=4", sparsity="2:4"),
        }
    ),
}
REPLAY = """
import sys, torch
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.policies.policy import Policy
from slimfront.workloads.cache import state_digest
from slimfront.workloads.builtin.digits_model import DigitsResNet
from slimfront.workloads.builtin.digits_vit import DigitsViT
from slimfront.workloads.workload import Workload
from torch.utils.data import TensorDataset
torch.set_num_threads(1)
for text in sys.argv[1:]:
    torch.manual_seed(0)
    model, example = DigitsResNet(16).eval(), torch.zeros(1, 1, 16, 16)
    data = TensorDataset(torch.randn(50, 1, 16, 16), torch.zeros(50, dtype=torch.int64))
    workload = Workload(model, data, data, data, data, example)
    groups = find_channel_groups(model, example)[0]
    slim = pruned_copy(model, example, Policy.from_json(text), groups, workload, seed=3)
    print(state_digest(slim.state_dict()))
"""


@pytest.mark.slow
def test_a_policy_replayed_in_another_process_gives_the_same_weights_bit_for_bit():
    texts = [policy.to_json() for policy in POLICIES.values()]
    runs = [
        subprocess.run([sys.executable, "-c", REPLAY, *texts], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert len(set(runs[0].split())) == len(POLICIES)


def test_every_setting_goes_through_json_and_those_that_decide_nothing_are_left_out():
    for policy in POLICIES.values():
        assert Policy.from_json(policy.to_json()) == policy
    assert Policy(pruning=Pruning("random", "global", 3, "merge")) == Policy()
    assert Policy(width=0.5, pruning=Pruning(steps=3)) == Policy(width=0.5)  # nothing is trained in between
