"""Every technique of the guide is a choice of a study file and stands in the policy's JSON."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from slimfront.spaces.models.channel_groups import ChannelGroup
from slimfront.spaces.models.layers import Layer
from slimfront.spaces.policies.policy import Policy
from slimfront.spaces.space import Space
from slimfront.studies.study_file.spec import StudySpec

ROOT = Path(__file__).parents[3]
STUDY = {"study": "s", "workload": "digits", "target": "cpu-openvino", "objectives": ["accuracy_drop", "flops"]}
LAYERS = [
    Layer("conv", "conv2d", "", 16 * 144, 640, True, (16, 16, 3, 3)),
    Layer("fc", "linear", "", 64, 64, True, (8, 8)),
]
GROUPS = [ChannelGroup("conv", 16, ("conv",)), ChannelGroup("stage", 32, ("fc",))]
HALF = {"width": [0.5, 1.0]}
GRIDS = {"weight_bits": [8, 32], "activation_bits": [8]}

SPACES = {
    "channels of one group, a stage or a head alone": ({"channel_sparsity": [0, 0.5]}, {"channels": {"stage": 0.5}}),
    "width": ({"width": [1.0, 0.5]}, {"width": 0.5}),
    **{
        f"by {criterion}": ({**HALF, "criterion": ["l2", criterion]}, {"pruning": {"criterion": criterion}})
        for criterion in ("l1", "taylor", "bn_scale", "random")
    },
    **{
        f"weights: {sparsity}": ({"weight_sparsity": [0, sparsity]}, {"layers": {"fc": {"sparsity": sparsity}}})
        for sparsity in (0.5, "2:4", "<0.5std")
    },
    "weights globally": (
        {"weight_sparsity": [0, 0.5], "sparsity_scope": ["layer", "global"]},
        {"pruning": {"scope": "global"}},
    ),
    "gradually": ({**HALF, "pruning_steps": [1, 4], "recovery_epochs": [4]}, {"pruning": {"steps": 4}}),
    "merged": ({**HALF, "channel_reduction": ["drop", "merge"]}, {"pruning": {"reduction": "merge"}}),
    "reconstructed": ({**HALF, "channel_reduction": ["reconstruct"]}, {"pruning": {"reduction": "reconstruct"}}),
    "in fours": ({**HALF, "channel_multiple": [8, 4]}, {"pruning": {"multiple": 4}}),
    "chosen by LASSO": ({**HALF, "channel_reduction": ["lasso"]}, {"pruning": {"reduction": "lasso"}}),
    "a block": ({"removed_blocks": [0, 1]}, {"removed_blocks": ["second"]}),
    "depth": ({"depth": [1.0, 0.5]}, {"removed_blocks": ["first"]}),
    **{
        f"operator {name}": ({"operators": ["dense", name]}, {"layers": {"conv": {"operator": name}}})
        for name in ("separable", "groups=4", "rank=0.25", "pca=0.25")
    },
    "low rank of a linear layer": ({"operators": ["dense", "rank=0.5"]}, {"layers": {"fc": {"operator": "rank=0.5"}}}),
    **{
        f"weights of {bits} bits": ({"weight_bits": [bits, 32]}, {"layers": {"fc": {"weight_bits": bits}}})
        for bits in (2, 3, 4, 5, 6, 8, 16)
    },
    "activations": ({"activation_bits": [8, 32]}, {"layers": {"fc": {"activation_bits": 8}}}),
    "mixed precision, layer by layer": (
        {"weight_bits": [4, 8], "activation_bits": [8, 32]},
        {"layers": {"conv": {"weight_bits": 4, "activation_bits": 8}, "fc": {"weight_bits": 8}}},
    ),
    "bfloat16": (
        {"weight_bits": [8, 16, 32], "activation_bits": [8, 16, 32]},
        {"layers": {"fc": {"weight_bits": 16, "activation_bits": 16}}},
    ),
    **{
        f"codebook {name}": (
            {"weight_bits": [4], "codebooks": ["uniform", name]}, {"layers": {"fc": {"codebook": name}}}
        )
        for name in ("power_of_two", "k_means")
    },
    "dynamic ranges": (
        {**GRIDS, "activation_ranges": ["static", "dynamic"]}, {"layers": {"fc": {"activation_range": "dynamic"}}}
    ),
    "4 bits by groups of inputs": (
        {"weight_bits": [4, 32], "weight_group_size": [0, 64]}, {"layers": {"fc": {"weight_group_size": 64}}}
    ),
}  # fmt: skip
"""Technique -> what a study file's space says, what a policy of it then holds."""

SCHEMES = [
    *({"calibration": name} for name in ("min_max", "percentile", "entropy")),
    {"weights": "tensor"},
    {"activations": "symmetric"},
    {"group_grids": "affine"},
]
RECOVERIES = [
    *({"distiller": name} for name in ("hard", "feature", "relation", "attention")),
    {"teachers": ["digits-gru"]},
    {"mutual": True},
    {"data": "unlabelled"},
    {"data": "synthetic"},
    {"steps": ["prune", "train", "quantize", "train"]},
    {"steps": ["quantize", "prune", "train"]},
    *({"steps": ["prune", name, "train"]} for name in ("equalize", "adaround", "correct_bias", "awq", "gptq")),
    {"schedule": "cosine"},
    {"schedule": "constant"},
    {"optimizer": "adamw"},
    {"optimizer": "adafactor"},
    {"patience": 2},
    {"mixed_precision": True},
]


def policies(**parts) -> list[Policy]:
    """Every point of the space that a study file with these keys describes."""
    spec = StudySpec.from_document({**STUDY, "budget": {"trials": 1}, **parts}, "study.yaml", Path())
    space = Space(
        LAYERS, GROUPS, spec.space.choices(),
        spec.recovery.settings(), ["first", "second"],
        spec.quantization.scheme(), ["first", "second"],
    )  # fmt: skip
    names = [knob.name for knob in space.knobs]
    chosen = itertools.product(*(knob.choices for knob in space.knobs))
    return [space.policy(dict(zip(names, choices, strict=True))) for choices in chosen]


def holds(document: object, part: object) -> bool:
    if isinstance(part, dict):
        return isinstance(document, dict) and all(key in document and holds(document[key], part[key]) for key in part)
    return document == part


@pytest.mark.parametrize("technique", SPACES)
def test_a_technique_of_the_space_stands_in_the_policy(technique):
    space, part = SPACES[technique]
    if all(len(choices) == 1 for choices in space.values()):
        space = {**space, **HALF}
    found = [policy for policy in policies(space=space) if holds(json.loads(policy.to_json()), part)]
    assert found
    assert all(Policy.from_json(policy.to_json()) == policy for policy in found)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_how_grids_are_chosen_stands_in_the_policy(scheme):
    space = {"weight_bits": [4, 32], "weight_group_size": [64]} if "group_grids" in scheme else GRIDS
    policy, *_ = policies(space=space, quantization=scheme)
    assert json.loads(policy.to_json())["scheme"] == scheme


@pytest.mark.parametrize("recovery", RECOVERIES, ids=str)
def test_how_it_is_recovered_stands_in_the_policy(recovery):
    (policy, *_) = policies(space={**GRIDS, "recovery_epochs": [2]}, recovery=recovery)
    assert holds(json.loads(policy.to_json())["recovery"], recovery)


def words(settings: Iterable[dict]) -> set[str]:
    """Every value that settings of a study file take, but numbers and switches."""
    values = [value for given in settings for value in given.values()]
    found = {str(v) for value in values for v in (value if isinstance(value, list) else [value])}
    return found - {"True", "2"}


def guide() -> str:
    pages = ("techniques.md", "quantization.md", "recovery.md", "long-recoveries.md")
    return "\n\n".join((ROOT / "docs" / "guide" / page).read_text(encoding="utf-8") for page in pages)


def test_the_guide_names_every_technique():
    text = guide()
    keys = {key for space, _ in SPACES.values() for key in space}
    unnamed = [word for word in sorted(keys | words([*SCHEMES, *RECOVERIES])) if word not in text]
    assert unnamed == []


def test_the_guide_says_of_each_when_it_helps_and_what_it_does_to_latency():
    text = guide()
    tables = [part.splitlines() for part in text.split("\n\n") if "| when it helps |" in part.split("\n")[0]]
    cells = [[[cell.strip() for cell in row.strip("|").split("|")] for row in table] for table in tables]
    assert [header[-1] for header, *_ in cells] == ["latency"] * 3 + ["when it helps"] * 3
    assert "cost no latency" in text  # ranges and scales
    assert "None of these changes latency" in text  # recovery
    rows = [row for _, _, *below in cells for row in below]
    assert [row for row in rows if not all(row[1:])] == []  # without a setting it is that of the row above
    subjects = " ".join(f"{row[0]} {row[1]}" for row in rows)
    settings = {key for given in (*SCHEMES, *RECOVERIES) for key in given}
    assert [word for word in sorted(settings | words([*SCHEMES, *RECOVERIES])) if word not in subjects] == []
