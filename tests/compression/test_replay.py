"""A policy from its JSON gives the same weights to the last bit in another process, whatever technique it names."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from slimfront.compression.packing.packed_file import digest, weights_of
from slimfront.compression.pruning.gradual import gradually_pruned
from slimfront.compression.pruning.prune import is_structurally_changed, pruned_copy, reestimate_batch_norm
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.compression.recovery.recover import recover
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.pruning import Pruning
from slimfront.spaces.policies.quantization_scheme import Scheme
from slimfront.spaces.policies.resolved import effective_policy
from slimfront.workloads.attention import SelfAttention
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import TensorDataset

SEED = 5
HALF = {"conv1": 0.5}
SPARSE = {
    "conv1": LayerPolicy(sparsity=0.5),
    "fc": LayerPolicy(sparsity="2:4"),
    "conv2": LayerPolicy(sparsity="<0.5std"),
}
GRIDS = {name: LayerPolicy(4, 8) for name in ("conv1", "conv2", "fc")}
TRAINED = Recovery(2, 0.05)
FAMILIES = {
    "channels by l2": Policy(channels=HALF),
    "width by Taylor": Policy(width=0.5, pruning=Pruning("taylor")),
    "channels at random, merged": Policy(channels=HALF, pruning=Pruning("random", reduction="merge")),
    "weights by Taylor, globally": Policy(layers=SPARSE, pruning=Pruning("taylor", "global")),
    "gradual": Policy(channels=HALF, layers=SPARSE, pruning=Pruning("l1", steps=3), recovery=TRAINED),
    "operators": Policy(layers={"conv2": LayerPolicy(operator="separable"), "fc": LayerPolicy(operator="rank=0.5")}),
    "a block removed": Policy(removed_blocks=("block",)),
    "grids": Policy(layers=GRIDS, scheme=Scheme("entropy", "tensor", "symmetric")),
    "dynamic": Policy(layers={"fc": LayerPolicy(8, 8, activation_range="dynamic"), "conv1": LayerPolicy(16)}),
    "bfloat16": Policy(
        layers={"conv1": LayerPolicy(16, 16), "fc": LayerPolicy(16, 16), "conv2": LayerPolicy(8, 8)},
        recovery=replace(TRAINED, steps=("prune", "quantize", "train")),
    ),
    "codebooks": Policy(
        layers={"fc": LayerPolicy(3, codebook="k_means"), "conv1": LayerPolicy(3, codebook="power_of_two")}
    ),
    "quantization-aware": Policy(
        layers=GRIDS, recovery=replace(TRAINED, steps=("prune", "train", "quantize", "train"))
    ),
    "codebook-aware": Policy(
        layers={"fc": LayerPolicy(3, codebook="k_means")},
        recovery=replace(TRAINED, steps=("prune", "quantize", "train")),
    ),
    "without labels": Policy(layers=GRIDS, recovery=Recovery(steps=("prune", "equalize", "adaround", "correct_bias"))),
    "distilled": Policy(width=0.5, recovery=replace(TRAINED, distiller="feature", patience=1, schedule="cosine")),
    "heads": Policy(channels={"attention": 0.4}, recovery=replace(TRAINED, optimizer="adamw")),
    "quantized before pruning": Policy(
        channels=HALF, layers=GRIDS, recovery=replace(TRAINED, steps=("quantize", "prune", "train"))
    ),
    "two teachers": Policy(width=0.5, recovery=replace(TRAINED, teachers=(f"{__file__}:other_teacher",))),
    "mutual, synthetic": Policy(width=0.5, recovery=replace(TRAINED, mutual=True, data="synthetic")),
}


class Network(nn.Module):
    """Maps [n, 1, 6, 6] to [n, 3]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.block = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.conv2, self.fc = nn.Conv2d(16, 4, 3, padding=1), nn.Linear(36, 3)
        self.attention = SelfAttention(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(x)).relu()
        x = self.conv2(self.block(x)).relu()
        tokens = nn.functional.max_pool2d(x, 2).flatten(2)
        return self.fc((tokens + self.attention(tokens, tokens, tokens)[0]).flatten(1))


def workload_of(model: nn.Module) -> Workload:
    inputs = torch.randn(80, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs.mean((1, 2, 3)) > 0).long())
    return Workload(model.eval(), data, data, data, data, inputs[:1])


def other_teacher() -> Workload:
    return workload_of(Network(seed=1))


def weights(policy: Policy) -> str:
    """Digest of what a trial of `policy` makes, step by step as a worker takes them."""
    workload = workload_of(Network())
    groups, _ = find_channel_groups(workload.model, workload.example_input)

    def prune(model: nn.Module) -> nn.Module:
        return pruned_copy(model, workload.example_input, policy, groups, workload, SEED)

    def train(model: nn.Module, current: Policy) -> None:
        recover(model, workload, replace(current, recovery=Recovery(1)), SEED, 16)

    model = prune(workload.model)
    if policy.pruning.steps > 1:
        model = gradually_pruned(workload, policy, groups, train, SEED)
    elif is_structurally_changed(policy, groups):
        reestimate_batch_norm(model, workload.calibration)
    effective = effective_policy(policy)
    model = recover(model, workload, policy, SEED, 16, prune)
    return digest(weights_of(make_candidate(model, workload.example_input, effective, workload.calibration)))


OTHER = """
import importlib.util, json, sys, torch
torch.set_num_threads(1)
spec = importlib.util.spec_from_file_location("replay", sys.argv[1])
replay = importlib.util.module_from_spec(spec)
spec.loader.exec_module(replay)
policies = json.loads(sys.stdin.read())
print(json.dumps({name: replay.weights(replay.Policy.from_json(text)) for name, text in policies.items()}))
"""


@pytest.mark.slow
def test_every_family_is_replayed_from_json_in_another_process_bit_for_bit():
    own = {name: weights(policy) for name, policy in FAMILIES.items()}
    assert len(set(own.values())) == len(own)  # each technique makes weights of its own
    texts = json.dumps({name: policy.to_json() for name, policy in reversed(FAMILIES.items())})
    other = subprocess.run(
        [sys.executable, "-c", OTHER, __file__], input=texts, capture_output=True, text=True, check=True, timeout=300
    )
    assert json.loads(other.stdout.splitlines()[-1]) == own
