"""Models of any inputs and outputs are called with batches: one tensor, or several by name."""

import copy
import pickle
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from slimfront.compression.batches import arrays_of, example_arrays, outputs_of
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.core.batch import largest_difference, rows, stacked
from slimfront.core.errors import WorkloadError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.models.channel_groups import find_channel_groups
from slimfront.spaces.models.layers import find_layers
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from slimfront.workloads.calls import leaves, names_of_outputs
from slimfront.workloads.contract import held
from slimfront.workloads.load import adopt_workload
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

IDS = torch.arange(40 * 6).reshape(40, 6).remainder(11)
MASK = torch.arange(6) < 3 + torch.arange(40)[:, None] % 4
TARGETS = torch.arange(40) % 3
Pair = namedtuple("Pair", ["logits", "size"])


@dataclass
class Answer:
    logits: torch.Tensor
    parts: dict
    note: str = "is no tensor"


class Tagger(nn.Module):
    """Reads token ids and a mask; returns logits and another output in a structure of its own."""

    def __init__(self, structure=lambda logits, size: (logits, {"size": size})):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.hidden = nn.Embedding(11, 8), nn.Linear(8, 16)
        self.fc, self.size = nn.Linear(16, 3), nn.Linear(16, 1)
        self.structure = structure

    def encode(self, ids, keep):
        assert (ids.dtype, keep.dtype) == (torch.int64, torch.bool)
        weights = keep.unsqueeze(-1).float()
        return (self.hidden(self.table(ids)).relu() * weights).sum(1) / weights.sum(1)

    def forward(self, ids, keep):
        hidden = self.encode(ids, keep)
        return self.structure(self.fc(hidden), self.size(hidden))


class Items:
    """A data set of whatever a function makes of an index."""

    def __init__(self, item, count=40):
        self.item, self.count = item, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.item(index)


def workload(model=None, item=lambda i: ((IDS[i], MASK[i]), TARGETS[i]), example=(IDS[:1], MASK[:1]), **settings):
    data = [Items(item) for _ in range(4)]
    return held(
        adopt_workload(Workload(model or Tagger(), *data, example_inputs=example, **settings), "mine", Path.cwd())
    )


def two(**settings):
    return workload(
        metric=lambda outputs, targets: 1.0, loss=lambda outputs, targets: outputs["size"].mean(), **settings
    )


STRUCTURES = {
    "tuple": (lambda a, b: (a, b), ["output0", "output1"]),
    "nested": (lambda a, b: (a, {"size": b, "none": None}), ["output0", "output1.size"]),
    "named tuple": (Pair, ["logits", "size"]),
    "dictionary": (lambda a, b: {"logits": a, "more": [b, b]}, ["logits", "more.0", "more.1"]),
    "data class": (lambda a, b: Answer(a, {"size": b}), ["logits", "parts.size"]),
}


@pytest.mark.parametrize(("structure", "names"), STRUCTURES.values(), ids=STRUCTURES.keys())
def test_every_tensor_of_a_result_has_a_name(structure, names):
    assert [name for name, _ in leaves(structure(torch.zeros(1, 3), torch.zeros(1)))] == names


def by_keyword(i):
    return {"keep": MASK[i].numpy(), "ids": IDS[i]}, int(TARGETS[i])


CALLS = {
    "positions": {},
    "keywords": {"item": by_keyword, "example": {"ids": IDS[:1], "keep": MASK[:1]}},
    "own": {
        "item": lambda i: (torch.cat([IDS[i], MASK[i].long()]), TARGETS[i]),
        "example": torch.cat([IDS[:1], MASK[:1].long()], 1),
        "forward": lambda model, both: model(both[:, :6], both[:, 6:].bool()),
    },
    "a part": {"forward": lambda model, inputs: model.fc(model.encode(*inputs)), "outputs": []},
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_a_batch_is_the_call_through_copies_pickles_and_exports(call):
    model = Tagger(lambda a, b: {"logits": a, "size": b})
    made = workload(model, **({"outputs": ["logits"]} | call))
    batch = stacked([made.validation[i][0] for i in range(5)])
    expected = model.eval()(IDS[:5], MASK[:5])["logits"]
    assert torch.equal(made.model(batch), expected)
    copied = copy.deepcopy(made.model)
    with torch.no_grad():
        copied.fc.weight.zero_()
    assert torch.equal(made.model(batch), expected), "a copy is a model of its own"
    assert torch.equal(copied(batch), copied.fc.bias.expand(5, 3))
    exported = torch.export.export(made.model, (batch,)).module()
    torch.testing.assert_close(exported(batch), expected)
    assert [layer.name for layer in find_layers(made.model, made.example_input)][:1] == ["hidden"]
    assert {group.name for group in find_channel_groups(made.model, made.example_input)[0]} == {"hidden"}


def test_an_adopted_workload_is_pickled_with_its_call():
    made = workload(Tagger(Pair), outputs=["logits"])
    model = pickle.loads(pickle.dumps(made.model))
    assert torch.equal(model(made.example_input), made.model(made.example_input))
    assert names_of_outputs(model) == ["logits"]


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "litert", "torch"])
@pytest.mark.parametrize("bits", [32, 8])
def test_every_runtime_takes_and_gives_named_arrays_in_their_own_types(name, bits, tmp_path):
    made = two(model=Tagger(Pair))
    runtime, target = get_runtime(name), load_target(f"cpu-{name}").model_copy(update={"batch": 4})
    layers = {layer.name: LayerPolicy(bits, bits) for layer in find_layers(made.model, made.example_input)}
    candidate = make_candidate(made.model, made.example_input, Policy(layers=layers), made.calibration)
    path = tmp_path / f"model{runtime.suffix}"
    runtime.lower(candidate, made.example_input, target, path)
    signature = runtime.signature(path)
    assert [(t.name, t.dtype, t.shape) for t in signature.inputs] == [
        ("ids", "int64", (4, 6)),
        ("keep", "bool", (4, 6)),
    ]
    assert [(t.name, t.dtype, t.shape) for t in signature.outputs] == [
        ("logits", "float32", (4, 3)),
        ("size", "float32", (4, 1)),
    ]
    inputs = stacked([made.validation[i][0] for i in range(4)])
    found = outputs_of(runtime.load(path, target).run(arrays_of(inputs)))
    with torch.no_grad():
        assert largest_difference(made.model(inputs), found) < (1e-5 if bits == 32 else 0.1)


def test_one_model_called_in_two_ways_has_two_artifacts(tmp_path):
    runtime, target = get_runtime("onnxruntime"), load_target("cpu-onnxruntime")
    ways = [lambda model, xs: model(*xs)[0], lambda model, xs: 2 * model(*xs)[0]]
    found = []
    for way in ways:
        made = workload(Tagger(), forward=way)
        candidate = make_candidate(made.model, made.example_input, Policy(), made.calibration)
        artifact = runtime.lower(candidate, made.example_input, target, tmp_path / "model.onnx")
        found.append(runtime.load(artifact.path, target).run(example_arrays(made.example_input, 1))["output"])
    np.testing.assert_allclose(found[1], 2 * found[0], rtol=1e-5)


IMAGE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
KINDS = {
    "array": (np.ones((4, 4), np.float64), torch.zeros(1, 4, 4), torch.ones(4, 4)),
    "bytes": (np.ones((4, 4), np.uint8), torch.zeros(1, 4, 4, dtype=torch.uint8), torch.ones(4, 4, dtype=torch.uint8)),
    "number": (3, torch.zeros(1, dtype=torch.int64), torch.tensor(3)),
    "image": (
        IMAGE,
        torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        torch.arange(48, dtype=torch.uint8).reshape(4, 4, 3).permute(2, 0, 1),
    ),
}


@pytest.mark.parametrize(("given", "example", "expected"), KINDS.values(), ids=KINDS.keys())
def test_samples_are_taken_as_torch_collates_them(given, example, expected):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, values):
            return values.float().reshape(len(values), -1).sum(1, keepdim=True) * self.scale

    made = workload(Sum(), lambda i: (given, 1), example)
    assert torch.equal(made.train[0][0], expected)
    assert made.train[0][0].dtype == expected.dtype == made.example_input.dtype


def test_targets_may_be_any_structure_of_tensors():
    item = {"box": np.ones(4), "classes": [1, 2]}
    made = two(model=Tagger(Pair), item=lambda i: ((IDS[i], MASK[i]), item))
    _, target = made.train[0]
    assert target["box"].dtype == torch.float32
    assert target["classes"] == [1, 2]


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(IDS[0], TARGETS[0])])


BREACHES = {
    "loader": (
        {"train": DataLoader(Items(lambda i: i), 2)},
        "train must be a map-style data set with a length, not DataLoader; its .dataset is one",
    ),
    "stream": (
        {"train": Stream()},
        "train must be a map-style data set with a length, not Stream; list(...) of it is one",
    ),
    "key": (
        {"test": Items(lambda i: ({"ids": IDS[i]}, 0))},
        "test[0]'s input must hold ids, keep, not ids, as example_inputs",
    ),
    "type": (
        {"test": Items(lambda i: ((IDS[i].int(), MASK[i]), 0))},
        "test[0]'s input ids must be torch.int64 [6], as in example_inputs, not torch.int32 [6]",
    ),
    "count": ({"test": Items(lambda i: (IDS[i], 0))}, "test[0]'s input must be 2 inputs (ids, keep), not Tensor"),
    "output": ({"outputs": ["logit"]}, "outputs: the model returns output0, output1.size; logit is not among them"),
    "several": ({"outputs": []}, "metric 'top1' needs one output, and there are output0, output1.size"),
    "forward": ({"forward": 3}, "forward must be None or a function, not int"),
}


@pytest.mark.parametrize(("change", "line"), BREACHES.values(), ids=BREACHES.keys())
def test_what_does_not_fit_is_one_line(change, line):
    data = Items(lambda i: ((IDS[i], MASK[i]), TARGETS[i]))
    settings = {"example_inputs": (IDS[:1], MASK[:1]), "outputs": ["output0"]} | dict.fromkeys(
        ("train", "calibration", "validation", "test"), data
    )
    with pytest.raises(WorkloadError) as caught:
        Workload(Tagger(), **(settings | change)).check()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_the_earlier_name_of_the_example_is_taken():
    data = [Items(lambda i: (torch.ones(4), 0))] * 4
    made = Workload(nn.Linear(4, 3), *data, example_input=torch.zeros(1, 4))
    assert torch.equal(made.example_inputs, torch.zeros(1, 4))
    assert rows(made.example_input) == 1
