"""A user's model and data as slimfront computes with them: the same numbers, in float32, without wrappers."""

import copy
from collections import Counter
from types import MappingProxyType

import numpy as np
import pytest
import torch
from slimfront.core.batch import tensors_of
from slimfront.workloads.adapt import adapted
from slimfront.workloads.workload import Workload
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import TensorDataset

INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(8) % 3


def net(first=None):
    return nn.Sequential(first or nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


def workload(model, inputs=INPUTS, data=None):
    data = data or TensorDataset(inputs, TARGETS)
    splits = {split: copy.copy(data) for split in ("train", "calibration", "validation", "test")}
    own = Workload(model, example_input=inputs[:1], **splits)
    own.check()
    return own


def tied():
    model = net()
    model[0].weight = nn.Parameter(torch.randn(6, 6))
    return nn.Sequential(model, nn.Identity(), _with_weight(model[0].weight), nn.Linear(6, 3)).eval()


def _with_weight(weight):
    layer = nn.Linear(3, 6)
    outer = nn.Sequential(layer, nn.Linear(6, 6))
    outer[1].weight = weight
    return outer


class Tabled(nn.Module):
    """Reads its output's weight as a table, as language models do."""

    def __init__(self):
        super().__init__()
        self.table, self.inner, self.last = nn.Embedding(3, 6), nn.Linear(6, 6), nn.Linear(6, 3, bias=False)
        self.last.weight = self.table.weight

    def forward(self, inputs):
        return self.last(self.inner(self.table((inputs > 0).long())).mean(1))


def masked():
    layer = prune.l1_unstructured(nn.Linear(6, 6), "weight", 0.5)
    return net(layer)  # its weight is attached to a graph: it cannot be copied


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.features = nn.Linear(6, 3), {}

    def forward(self, inputs):
        self.last = self.features["last"] = self.layer(inputs)
        return self.last


MODELS = {
    "data parallel": (lambda: nn.DataParallel(net()), "DataParallel: the model inside is taken"),
    "compiled": (lambda: torch.compile(net()), "OptimizedModule: the model inside is taken"),
    "compiled part": (lambda: nn.Sequential(torch.compile(net())), "OptimizedModule: the model inside is taken"),
    "masked": (masked, "masks and parametrizations of 0 are computed once"),
    "weight norm": (lambda: net(weight_norm(nn.Linear(6, 6))), "masks and parametrizations of 0 are computed once"),
    "tied": (tied, "0.0, 2.1 have one weight: it is counted, pruned, quantized and stored once"),
    "tied to a table": (
        lambda: Tabled().eval(),
        "last.weight: of another layer too; each is a copy of its own from here on, counted and compressed apart, so that the uncompressed model counts 78 parameters instead of 60",
    ),
    "keeps its output": (Keeps, None),
}


@pytest.mark.parametrize(("make", "remark"), MODELS.values(), ids=MODELS.keys())
def test_what_is_taken_of_a_model_computes_the_same_and_can_be_copied(make, remark):
    torch.manual_seed(0)
    given = make()
    own = adapted(workload(given))
    plain = copy.deepcopy(own.model)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # nothing is compiled in a test
        assert torch.equal(plain(INPUTS), given(INPUTS)), "the model given still answers, and the same"
    assert [line[: len(remark)] for line in own.remarks] == ([remark] if remark else [])
    plain(INPUTS).sum().backward()
    copy.deepcopy(plain)
    names = [name for name, _ in plain.named_parameters(remove_duplicate=False)]
    owners = Counter(id(own) for module in plain.modules() for own in module.parameters(recurse=False))
    assert set(owners.values()) == {1}, "no two modules share anything"
    assert not any("parametrizations" in name or name.endswith("_orig") for name in names)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_floats_are_read_as_float32(dtype):
    own = adapted(workload(net().to(dtype), INPUTS.to(dtype)))
    assert {p.dtype for p in own.model.parameters()} == {torch.float32}
    assert own.example_input.dtype == own.train[0][0].dtype == torch.float32
    assert own.remarks == (
        f"weights are {dtype}: the model is compressed and measured in float32",
        f"inputs are {dtype}: they are read as float32",
    )


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_whole_numbers_stay_what_they_are(dtype):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(9, 3)

        def forward(self, inputs):
            assert inputs.dtype == dtype
            return self.table(inputs.long()).sum(1)

    tokens = torch.arange(8 * 6).reshape(8, 6).remainder(9).to(dtype)
    model = Tokens()
    own = adapted(workload(model, tokens))
    inputs, _ = own.train[3]
    assert inputs.dtype == own.example_input.dtype == dtype
    assert torch.equal(own.model(inputs[None]), model(tokens[3:4]))
    exported = torch.export.export(own.model, (own.example_input,)).module()
    assert torch.equal(exported(inputs[None]), model(tokens[3:4]))


class Items(list):
    """A data set of whatever it is given."""


CONVERTED = {
    "numpy": (lambda i: (INPUTS[i].numpy(), np.int32(TARGETS[i])), torch.int64),
    "attached": (lambda i: (INPUTS[i].clone().requires_grad_(), TARGETS[i].to(torch.uint8)), torch.int64),
    "plain": (lambda i: (INPUTS[i], int(TARGETS[i])), int),
}


@pytest.mark.parametrize(("item", "kind"), CONVERTED.values(), ids=CONVERTED.keys())
def test_samples_become_float32_tensors_without_a_graph(item, kind):
    own = adapted(workload(net(), data=Items(map(item, range(8)))))
    inputs, target = own.validation[2]
    assert torch.equal(inputs, INPUTS[2])
    assert inputs.dtype == torch.float32
    assert not inputs.requires_grad
    assert int(target) == 2
    assert kind in (getattr(target, "dtype", None), type(target))


def test_plain_tensors_stay_the_data_set_they_are():
    given = workload(net())
    own = adapted(given)
    assert own.train is given.train
    assert own.model is given.model
    assert own.remarks == ()


def test_splits_that_are_one_data_set_are_named():
    data = TensorDataset(INPUTS, TARGETS)
    own = adapted(
        Workload(net(), data, TensorDataset(INPUTS, TARGETS), data, TensorDataset(INPUTS, TARGETS), INPUTS[:1])
    )
    assert own.remarks == ("train, validation are one data set: accuracies measured on it are not of unseen samples",)


class Normalising(nn.Module):
    """Centres its input where it lies, as preprocessing in forward often does."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = net(), change

    def forward(self, inputs):
        self.change(inputs)
        return self.inner(inputs)


@pytest.mark.parametrize("change", [lambda x: x.sub_(0.5), lambda x: x.clamp_(-100, 100)], ids=["moved", "same values"])
def test_a_model_that_writes_into_its_inputs_leaves_the_data_as_they_are(change):
    model, inputs = Normalising(change).eval(), INPUTS.clone()
    plain = adapted(workload(model, inputs))
    outputs = plain.model(plain.train.tensors[0])
    assert plain.train.tensors[0].equal(INPUTS)
    assert inputs.equal(INPUTS)
    assert outputs.equal(model(INPUTS.clone()))
    assert outputs.equal(plain.model(plain.train.tensors[0]))
    assert any("in place" in remark for remark in plain.remarks)


@pytest.mark.parametrize("given", [INPUTS[:1].numpy(), MappingProxyType({"x": INPUTS[:1]}), (INPUTS[:1].numpy(),)])
def test_example_inputs_are_taken_as_data_sets_and_tokenizers_give_them(given):
    own = Workload(net(), *[TensorDataset(INPUTS, TARGETS)] * 4, example_inputs=given)
    assert all(tensor.equal(INPUTS[:1]) for tensor in tensors_of(own.example_input))
