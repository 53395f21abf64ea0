"""Artifacts whose inputs may have other sizes than the example's, along axes that the workload names."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.core.errors import WorkloadError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.studies.bundles.standalone import LOADERS
from slimfront.studies.inspection.inspect import inspect_workload
from slimfront.studies.inspection.other_sizes import size_remarks
from slimfront.workloads.contract import held
from slimfront.workloads.load import adopt_workload, workload_fingerprint
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.nn import functional

TARGETS = ("cpu-openvino", "cpu-onnxruntime")
AXES = {"ids": {1: "tokens"}, "mask": {1: "tokens"}}


class Reader(nn.Module):
    """Embeds token ids, adds where each stands, attends, and answers for each token and for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(50, 16), nn.Embedding(64, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        hidden = self.table(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        heads = (layer(hidden).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(*heads, attn_mask=mask[:, None, None].bool())
        hidden = hidden + attended.transpose(1, 2).flatten(2)
        hidden = hidden + self.narrow(torch.relu(self.wide(hidden)))
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return {"tokens_out": self.head(hidden), "logits": self.head((hidden * weights).sum(1) / weights.sum(1))}


class Folding(Reader):
    """A reader that makes a number of its length where nobody sees it: a graph holds that of the example for ever."""

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        made = super().forward(ids, mask)
        return {"logits": made["logits"] * int(np.asarray(ids.shape[1])) / 8}


class Once(Reader):
    """A reader of texts of eight tokens."""

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.table(ids).reshape(-1, 8, 16).sum(1))}


def sample(seed: int, length: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(length, dtype=torch.long)
    mask[length - seed % 3 :] = 0
    return {"ids": torch.randint(50, (length,), generator=generator), "mask": mask}


def reading(model: nn.Module, axes: Any = AXES) -> Workload:
    torch.manual_seed(0)
    data = [(sample(seed), seed % 3) for seed in range(24)]
    example = {name: tensor[None] for name, tensor in data[0][0].items()}
    return Workload(model, data, data, data, data, example, outputs=["logits"], dynamic_axes=axes)


def adopted(model: nn.Module, axes: Any = AXES) -> Workload:
    return held(adopt_workload(reading(model, axes), "reading", Path()))


@pytest.fixture(scope="module")
def reader() -> Workload:
    torch.manual_seed(0)
    return adopted(Reader())


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("bits", [32, 8])
def test_an_artifact_computes_at_any_length_what_the_model_does(
    reader: Workload, name: str, bits: int, tmp_path: Path
) -> None:
    target = load_target(name)
    runtime, policy = (
        get_runtime(target.runtime),
        Policy(layers={n: LayerPolicy(bits, bits) for n in ("wide", "narrow")}),
    )
    candidate = (
        make_candidate(reader.model, reader.example_input, policy, reader.calibration)
        if bits < 32
        else Candidate(Policy(), reader.model)
    )
    path = tmp_path / f"model{runtime.suffix}"
    runtime.lower(candidate, reader.example_input, target, path)
    session, run = runtime.load(path, target), LOADERS[target.runtime](path, 1)  # as run.py of a bundle loads it
    for length in (8, 3, 21, 1):
        inputs = {key: tensor[None] for key, tensor in sample(3, length).items()}
        with torch.no_grad():
            expected = reader.model(inputs).numpy()
        found = session.run({key: tensor.numpy() for key, tensor in inputs.items()})["logits"]
        alone = run({key: tensor.numpy() for key, tensor in inputs.items()})["logits"]
        np.testing.assert_array_equal(alone, found)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-3 if bits == 32 else 0.1 * np.abs(expected).max())
    said = {info.name: (info.shape, info.axes) for info in runtime.signature(path).inputs}
    assert said == {"ids": ((1, 8), {1: "tokens"}), "mask": ((1, 8), {1: "tokens"})}


@pytest.mark.parametrize("name", TARGETS)
def test_what_takes_other_lengths_is_passed_without_a_word(reader: Workload, name: str) -> None:
    assert size_remarks(reader, load_target(name)) == []
    every = adopted(Reader(), AXES)
    assert size_remarks(every, load_target(name)) == []


@pytest.mark.parametrize("name", TARGETS)
def test_a_constant_of_the_examples_length_is_found(name: str) -> None:
    with pytest.raises(
        WorkloadError, match=r"dynamic_axes: .* at tokens = 4 computes a different function .* constant"
    ):
        size_remarks(adopted(Folding()), load_target(name))


def test_a_model_of_one_length_is_refused_by_name() -> None:
    with pytest.raises(WorkloadError, match=r"dynamic_axes: the model does not run at tokens = 4"):
        inspect_workload(adopted(Once()), load_target("cpu-openvino"))


def test_a_runtime_without_dynamic_axes_says_which_size_stays(reader: Workload) -> None:
    (line,) = size_remarks(reader, load_target("cpu-torch"))
    assert line == "runtime torch has no dynamic axes: in its artifacts tokens is 8, as in the example"


@pytest.mark.parametrize(
    ("axes", "problem"),
    [
        ({"words": {1: "tokens"}}, "names 'words', and the model's inputs are ids, mask"),
        ({"ids": {0: "batch"}}, r"\['ids'\] must name axes from 1 to 1"),
        ({"ids": {1: 7}}, r"\['ids'\] must give axis 1 a name such as 'length', not 7"),
        ({"ids": ["tokens"]}, r"\['ids'\] must be a dictionary such as"),
        ("tokens", r"must be a dictionary such as \{'ids'"),
    ],
)
def test_what_is_no_axis_is_refused(axes: Any, problem: str) -> None:
    with pytest.raises(WorkloadError, match=f"dynamic_axes {problem}"):
        reading(Reader(), axes).check()


def test_a_workload_of_other_axes_is_another_one(reader: Workload) -> None:
    assert workload_fingerprint(reader) != workload_fingerprint(replace(reader, dynamic_axes={}))
