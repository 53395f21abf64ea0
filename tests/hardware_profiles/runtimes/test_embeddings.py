"""Embeddings in 8 and 4 bits: one decision a table, stored, counted and looked up as the torch model says."""

from importlib import import_module

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from slimfront.compression.compress import rounded_model
from slimfront.compression.packing.packed_file import (
    counted_bytes,
    digest,
    load_packed,
    packed_bytes,
    recorded_digest,
    save_packed,
)
from slimfront.compression.quantization.candidates import make_candidate
from slimfront.compression.quantization.fake_quantize import fake_quantized
from slimfront.core.errors import CompressionError, LoweringError, PolicyError
from slimfront.evaluators.counts import counts_of
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.hardware_profiles.runtimes.onnx.lowering import lower
from slimfront.hardware_profiles.runtimes.registry import RUNTIMES
from slimfront.spaces.models.embeddings import why_no_table
from slimfront.spaces.models.layers import find_every_layer, macs_by_module
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.layer_policy import LayerPolicy
from slimfront.spaces.policies.policy import Policy
from slimfront.studies.inspection.untouched import why_untouched
from torch import nn

HERE = [name for name, entry in RUNTIMES.items() if entry.integer_tables and not entry.gpu]


class Reader(nn.Module):
    """Two tables, one of them read twice, positions and a layer: [n, length] -> [n, 3]."""

    def __init__(self, rows: int = 50, columns: int = 12, length: int = 6) -> None:
        super().__init__()
        self.words = nn.Embedding(rows, columns, padding_idx=0)
        self.kinds, self.places = nn.Embedding(4, columns), nn.Embedding(length, columns)
        self.register_buffer("ids", torch.arange(length)[None], persistent=False)
        self.fc = nn.Linear(columns, 3)

    def forward(self, ids):
        found = self.words(ids) + self.words(ids.flip(1)) + self.kinds(ids % 4) + self.places(self.ids)
        return self.fc(found.mean(1))


def candidate_of(bits, *, rows=50, columns=12, length=6, samples=4, seed=0, **layer) -> tuple[Candidate, torch.Tensor]:
    torch.manual_seed(seed)
    model = Reader(rows, columns, length).eval()
    ids = torch.randint(0, rows, (samples, length))
    policy = Policy(embeddings=bits, layers={"fc": LayerPolicy(**layer)})
    return make_candidate(model, ids[:1], policy, [(each, 0) for each in ids]), ids


def run(candidate, ids, runtime, folder):
    target = load_target(f"cpu-{runtime}")
    path = folder / f"model{get_runtime(runtime).suffix}"
    get_runtime(runtime).lower(candidate, ids[:1], target, path)
    session = get_runtime(runtime).load(path, target)
    outputs = [session.run({"input": each[None].numpy()})["output"].copy() for each in ids]
    return torch.cat([torch.from_numpy(each) for each in outputs]), path


@pytest.mark.parametrize("runtime", HERE)
@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    words=st.sampled_from((4, 8)), kinds=st.sampled_from((4, 8, 32)), places=st.sampled_from((8, 32)), rows=st.integers(2, 60),
    columns=st.integers(1, 17), length=st.integers(2, 9), seed=st.integers(0, 99),
)  # fmt: skip
def test_an_artifact_looks_up_what_its_simulation_does(runtime, tmp_path, words, kinds, places, **sizes) -> None:
    candidate, ids = candidate_of({"words": words, "kinds": kinds, "places": places}, **sizes)
    outputs, _ = run(candidate, ids, runtime, tmp_path)
    with torch.no_grad():
        expected, floats = rounded_model(candidate)(ids), candidate.model(ids)
    torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-5)
    assert sizes["columns"] < 4 or not torch.allclose(floats, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("runtime", HERE)
def test_a_file_holds_integers_in_place_of_floats_next_to_layers_on_integers(runtime, tmp_path) -> None:
    sizes, layer = {}, {"weight_bits": 8, "activation_bits": 8}
    for bits in (32, 8, 4):
        candidate, ids = candidate_of({"words": bits}, rows=2000, columns=64, **layer)
        outputs, path = run(candidate, ids, runtime, tmp_path)
        torch.testing.assert_close(outputs, rounded_model(candidate)(ids).detach(), rtol=0.1, atol=0.02)
        sizes[bits] = path.stat().st_size
    elements, scales = 2000 * 64, 4 * 2000
    assert sizes[32] - sizes[8] == pytest.approx(elements * (32 - 8) / 8 - scales, abs=16384)
    assert sizes[8] - sizes[4] == pytest.approx(elements * (8 - 4) / 8, abs=16384)


def test_no_runtime_makes_floats_of_a_whole_table(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    openvino = pytest.importorskip("openvino")
    candidate, ids = candidate_of({"words": 8}, rows=2000, columns=64)
    _, path = run(candidate, ids, "onnxruntime", tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(path, options)
    tables = [t for t in onnx.load(options.optimized_model_filepath).graph.initializer if list(t.dims) == [2000, 64]]
    assert {table.data_type for table in tables} == {onnx.TensorProto.INT8}
    operations = openvino.Core().compile_model(path, "CPU").get_runtime_model().get_ops()
    tables = [op for op in operations if list(op.get_output_shape(0)) == [2000, 64]]
    assert {op.get_output_element_type(0).get_type_name() for op in tables} == {"i8"}


def test_the_packed_file_holds_what_is_counted(tmp_path) -> None:
    candidate, ids = candidate_of({"words": 4, "kinds": 8})
    path = save_packed(candidate, tmp_path / "packed.safetensors")
    assert packed_bytes(path) == counted_bytes(candidate) == counted_bytes(Candidate(candidate.policy, candidate.model))
    counted = counts_of(candidate.model, macs_by_module(candidate.model, ids[:1]), candidate.policy)
    assert counted["packed_bytes"] == counted_bytes(candidate)
    assert recorded_digest(path) == digest(load_packed(path))
    with safe_open(path, "np") as file:
        assert {"words.weight", "words.weight.scale"} <= set(file.keys())
        assert "places.weight.scale" not in file.keys()  # noqa: SIM118  # it is not a mapping
    plain = counts_of(candidate.model, macs_by_module(candidate.model, ids[:1]), Policy())
    assert plain["parameters"] == counted["parameters"]
    assert plain["bops"] == counted["bops"]


@pytest.mark.parametrize("bits", [8, 4])
def test_fake_quantization_gives_the_numbers_of_the_artifact_and_leaves_them(bits) -> None:
    candidate, ids = candidate_of({"words": bits, "kinds": bits})
    expected, model = rounded_model(candidate)(ids).detach(), candidate.model
    with fake_quantized(model, candidate.policy, {}):
        outputs = model(ids)
        outputs.sum().backward()
        assert model.words.weight.grad.abs().sum() > 0
    torch.testing.assert_close(outputs.detach(), expected)
    torch.testing.assert_close(model(ids).detach(), expected)
    assert model.words.weight[0].abs().sum() == 0  # the row of padding


def test_what_is_not_looked_up_by_the_input_has_no_decision(tmp_path) -> None:
    candidate, ids = candidate_of({})
    found = {layer.name: layer.kind for layer in find_every_layer(candidate.model, ids[:1])}
    assert found == {"words": "embedding", "kinds": "embedding", "fc": "linear"}
    assert "does not depend on the model's input" in why_no_table(candidate.model, ids[:1])["places"]
    assert why_untouched(candidate.model, ids[:1]).keys() == {"places"}
    candidate.model.spare = nn.Embedding(3, 4)
    assert "never called" in why_untouched(candidate.model, ids[:1])["spare"]
    made = make_candidate(candidate.model, ids[:1], Policy(embeddings={"spare": 8}), [(each, 0) for each in ids])
    with pytest.raises(LoweringError, match="spare is not looked up in the exported graph"):
        lower(made, ids[:1], 1, tmp_path / "model.onnx")


@pytest.mark.parametrize("module", ["litert.lowering", "nvidia.tensorrt_lowering"])
def test_runtimes_that_look_up_floats_refuse_integers(module, tmp_path) -> None:
    if module.startswith("litert"):
        pytest.importorskip("ai_edge_litert")
    candidate, ids = candidate_of({"words": 8})
    with pytest.raises(LoweringError, match="leave embedding_bits at 32"):
        import_module(f"slimfront.hardware_profiles.runtimes.{module}").lower(candidate, ids[:1], 1, tmp_path / "model")


class Tied(nn.Module):
    """A table that is the weight of the last layer too: [n, length] -> [n, length, rows]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(self.words(ids))


class Bag(nn.Module):
    """A bag, and a table that clips its rows: [n, length] -> [n, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.clipped = nn.EmbeddingBag(20, 8), nn.Embedding(20, 8, max_norm=1.0)

    def forward(self, ids):
        return self.bag(ids) + self.clipped(ids).mean(1)


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [(Tied(), "words", "of another layer too"), (Bag(), "bag", "sums the rows"), (Bag(), "clipped", "max_norm")],
    ids=["tied", "bag", "clipped"],
)
def test_what_is_left_alone_says_why(model, name, reason) -> None:
    ids = torch.tensor([[1, 2, 3]])
    assert reason in why_untouched(model.eval(), ids)[name]
    assert name not in {layer.name for layer in find_every_layer(model, ids)}
    with pytest.raises(CompressionError, match="embedding"):
        make_candidate(model, ids, Policy(embeddings={name: 8}), [(ids[0], 0)] * 2)


def test_a_policy_with_embeddings_is_json_and_old_ones_are_what_they_were() -> None:
    policy = Policy(embeddings={"words": 4, "kinds": 32})
    assert policy.to_json() == '{"embeddings":{"words":4},"schema":1}'
    assert Policy.from_json(policy.to_json()) == policy
    assert "embeddings" not in Policy(width=0.5).to_json()
    for wrong in ({"words": 5}, {"words": "8"}, {"words": True}, ["words"]):
        with pytest.raises(PolicyError, match="embeddings"):
            Policy(embeddings=wrong)


class Tied(nn.Module):
    """A table that the output multiplies by too, once each is a copy of its own: [n, length] -> [n, length, rows]."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner, self.head = nn.Embedding(90, 32), nn.Linear(32, 32), nn.Linear(32, 90, bias=False)
        self.head.weight.data = self.words.weight.detach().clone()

    def forward(self, ids):
        return self.head(self.inner(self.words(ids)).relu())


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("bits", [32, 8])
def test_a_table_that_a_layer_multiplies_by_too_is_stored_once_while_both_are_equal(runtime, bits, tmp_path) -> None:
    torch.manual_seed(0)
    model, ids = Tied().eval(), torch.randint(0, 90, (4, 6))
    layers = {name: LayerPolicy(bits, bits) for name in ("inner", "head")}
    found = {}
    for name in ("equal", "apart"):
        policy = Policy(embeddings={"words": bits} if bits < 32 else {}, layers=layers)
        candidate = make_candidate(model, ids[:1], policy, [(each, 0) for each in ids])
        outputs, path = run(candidate, ids, runtime, tmp_path)
        torch.testing.assert_close(outputs, rounded_model(candidate)(ids).detach(), rtol=0.1, atol=0.05)
        session = get_runtime(runtime).load(path, load_target(f"cpu-{runtime}"))
        assert session.executed_precisions()["head"] == ("i8" if bits == 8 else "f32")
        found[name] = path.stat().st_size
        model.head.weight.data[3, 5] += 0.5  # as training does
    assert found["apart"] - found["equal"] == pytest.approx(90 * 32 * bits / 8, abs=300)
