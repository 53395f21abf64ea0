"""Channel pruning at one share over torchvision's architectures: does it run, and what does it remove?

    python benchmarks/compressing/channel_pruning.py --quick
    python benchmarks/compressing/channel_pruning.py --json channel_pruning.json

Every channel group of an untrained model loses the share; the pruned copy must run and keep its output shape. Printed are the
groups found and left out, the seconds to find them and to prune, and the share of parameters and FLOPs removed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torchvision
from slimfront.compression.pruning.prune import pruned_copy
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.models.layers import macs_by_module
from slimfront.spaces.policies.policy import Policy
from slimfront.workloads.attention import explicit_attention
from torch import nn

MODELS = (
    "resnet50", "mobilenet_v3_small", "efficientnet_b0", "densenet121", "shufflenet_v2_x1_0", "squeezenet1_1",
    "regnet_y_400mf", "convnext_tiny", "vit_b_32", "swin_t", "googlenet", "resnext50_32x4d",
)  # fmt: skip
QUICK = ("resnet50", "mobilenet_v3_small", "shufflenet_v2_x1_0", "regnet_y_400mf", "vit_b_32")
WANTED = 0.4


def main() -> None:
    arguments = read_arguments()
    names = arguments.models or (QUICK if arguments.quick else MODELS)
    rows = [pruned(name, arguments.share) for name in names]
    reached = sum(row["parameters_removed"] >= WANTED for row in rows)
    print(f"{reached} of {len(rows)} lose at least {WANTED:.0%} of their parameters; all of them run")
    if arguments.json:
        arguments.json.write_text(json.dumps({"share": arguments.share, "models": rows}, indent=2))


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="these instead")
    parser.add_argument("--share", type=float, default=0.5, help="of every group's channels, removed (default 0.5)")
    parser.add_argument("--json", type=Path, help="write the rows to this file too")
    return parser.parse_args()


def pruned(name: str, share: float) -> dict[str, object]:
    """Prune one model and print what came of it."""
    torch.manual_seed(0)
    options = {"aux_logits": False, "init_weights": True} if name == "googlenet" else {}
    example = torch.randn(1, 3, 224, 224)
    model = explicit_attention(torchvision.models.get_model(name, weights=None, **options).eval(), example)
    start = time.perf_counter()
    groups, left_out = find_channel_groups(model, example)
    found = time.perf_counter()
    slim = pruned_copy(model, example, Policy(width=1 - share), groups)
    end = time.perf_counter()
    with torch.no_grad():
        assert slim(example).shape == model(example).shape
    row = {
        "model": name,
        "groups": len(groups),
        "left_out": left_out,
        "find_s": found - start,
        "prune_s": end - found,
        "parameters_removed": 1 - parameters(slim) / parameters(model),
        "flops_removed": 1 - macs_by_module(slim, example)[""] / macs_by_module(model, example)[""],
    }
    print(
        f"{name:20} {len(groups):3} groups, {len(left_out)} left out; found in {row['find_s']:4.1f} s, pruned in "
        f"{row['prune_s']:4.1f} s; parameters -{row['parameters_removed']:.1%}, FLOPs -{row['flops_removed']:.1%}",
        flush=True,
    )
    return row


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
