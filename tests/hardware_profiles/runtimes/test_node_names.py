"""Every node of an exported graph leads back to the module that made it, whatever modules are called."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slimfront.hardware_profiles.runtimes.node_names import WEIGHTED, layer_of, module_of_node
from slimfront.hardware_profiles.runtimes.onnx.float_graph import export_float
from slimfront.hardware_profiles.runtimes.onnx.graph_nodes import nodes_of_layers
from slimfront.spaces.models.layers import find_layers
from torch import Tensor, nn

NAMES = ["conv", "0", "1", "2b", "layer1", "Conv", "Gemm", "MatMul", "a_1", "blocks", "Relu"]
CONTAINERS = {
    "sequential": lambda children: nn.Sequential(*children.values()),
    "list": lambda children: nn.ModuleList(children.values()),
    "dict": nn.ModuleDict,
}
layers = st.builds(lambda: nn.Conv2d(2, 2, 1))
trees = st.recursive(
    layers,
    lambda inner: st.builds(
        lambda kind, children: CONTAINERS[kind](children),
        st.sampled_from(sorted(CONTAINERS)),
        st.dictionaries(st.sampled_from(NAMES), inner, min_size=1, max_size=3),
    ),
    max_leaves=8,
)


class Everything(nn.Module):
    """Runs what its attributes hold: sequences as a module does, lists and dictionaries child by child."""

    def __init__(self, children: dict[str, nn.Module]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        return run(self.children(), x).mean((2, 3))


def run(modules, x: Tensor) -> Tensor:
    for module in modules:
        if isinstance(module, nn.ModuleList):
            x = run(module, x)
        elif isinstance(module, nn.ModuleDict):
            x = run(module.values(), x)
        elif isinstance(module, nn.Sequential) and any(type(inner) is not nn.Conv2d for inner in module):
            x = run(module, x)  # it may hold lists, which do not run
        else:
            x = module(x)
    return x


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), trees, min_size=1, max_size=4))
def test_every_layer_of_any_tree_of_modules_is_found(children):
    model, example = Everything(children).eval(), torch.zeros(1, 2, 3, 3)
    graph = export_float(model, example).graph
    names = [layer.name for layer in find_layers(model, example)]
    assert sorted(names) == sorted(name for name, module in model.named_modules() if type(module) is nn.Conv2d)
    for name in names:
        node = nodes_of_layers(graph, [name])[name][0]
        assert module_of_node(node.name) == layer_of(node.name) == name
        assert node.input[1] == f"{node.name}/weight"


def test_nodes_carry_whole_paths(make_network):
    graph = export_float(make_network("residual"), torch.zeros(1, 3, 8, 8)).graph
    made_by = {node.name: module_of_node(node.name) for node in graph.node}
    assert made_by["/stem/Conv"] == "stem"
    assert made_by["/blocks.1/blocks.1.conv2/Conv"] == "blocks.1.conv2"
    assert [name for name, path in made_by.items() if path == ""][:3] == ["/Relu", "/Add", "/Relu_1"]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("/fc/Gemm", "fc"),
        ("/fc/Gemm/WithoutBiases", "fc"),
        ("/fc/Gemm/weight", "fc"),
        ("/blocks.0/blocks.0.fc/MatMul/MatMulAddFusion", "blocks.0.fc"),
        ("/Conv/Conv/WithoutBiases", "Conv"),
        ("/Gemm/MatMul", "Gemm"),
        ("/Conv", ""),
        ("/stem/Relu", None),
        ("/stem/Convert", None),
        ("output", None),
        ("", None),
    ],
)
def test_the_layer_in_a_runtimes_name(name, layer):
    assert layer_of(name) == layer


def test_the_operations_that_layers_become(network):
    graph = export_float(network, torch.zeros(1, *network.shape)).graph
    found = {layer_of(node.name) for node in graph.node if node.op_type in WEIGHTED}
    assert found == {layer.name for layer in find_layers(network, torch.zeros(1, *network.shape))}
