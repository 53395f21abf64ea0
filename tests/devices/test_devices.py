"""A whole trial on a device other than the processor: no tensor stays behind, and the numbers are the same to the last bit.

The device is made for tests (`host_device.cpp`): torch treats it as any accelerator and refuses to mix it with the processor, and it
computes with the processor's own operations. What it cannot show: kernels that a GPU lacks or that round otherwise, copies that are
read before they are done, and memory that a GPU does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from slimfront.compression.compress import compressed
from slimfront.compression.recovery.checkpoint import Checkpoint
from slimfront.compression.recovery.train import train, training
from slimfront.core.batch import device_of, device_of_model
from slimfront.core.errors import StudyFileError, WorkloadError
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.search import sensitivity
from slimfront.search.execution.resources import worker_resources
from slimfront.search.trials import prepared_study
from slimfront.search.trials.baseline import lower_reference, with_scores
from slimfront.search.trials.prepared_study import prepare
from slimfront.search.trials.training import recoveries
from slimfront.search.trials.training.recoveries import Trained
from slimfront.search.trials.worker import Worker
from slimfront.search.trials.worker_setup import WorkerSetup
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy, Recovery
from slimfront.spaces.policies.pruning import Pruning
from slimfront.spaces.policies.quantization_scheme import Scheme
from slimfront.studies.inspection.study_checks import check_target
from slimfront.studies.store.records import ReferenceRecord
from slimfront.studies.study_file.parts import ComputeSpec
from slimfront.studies.study_file.spec import StudySpec
from slimfront.workloads.load import adopt_workload, load_workload
from slimfront.workloads.placement import on_device, placed
from slimfront.workloads.workload import Workload
from torch import nn
from torch.utils.data import Dataset, TensorDataset

TINY = f"{Path(__file__).parents[1] / 'search' / 'tiny_workload.py'}:workload"
TIMED = ("speedup", "latency", "throughput", "load", "artifact_bytes")  # torch's packages differ by their time stamps

INT8 = LayerPolicy(weight_bits=8, activation_bits=8, sparsity=0.5)
DECIDED = {
    "linear": INT8,
    "rank": LayerPolicy(weight_bits=8, activation_bits=8, operator="rank=0.5"),
    "pca": LayerPolicy(operator="pca=0.5", weight_bits=16, activation_bits=16),
    "power_of_two": LayerPolicy(weight_bits=3, codebook="power_of_two"),
    "k_means": LayerPolicy(weight_bits=4, codebook="k_means", sparsity="2:4"),
    "dynamic": LayerPolicy(weight_bits=8, activation_bits=8, activation_range="dynamic"),
}
"""What is done to a layer; the stem and the classifier of the network have other shapes than the convolution between them."""


def policy(conv: str, stem: str, fc: str, recovery: Recovery, scheme: Scheme, **pruning: object) -> Policy:
    layers = {"conv": DECIDED[conv], "stem": DECIDED[stem], "fc": DECIDED[fc]}
    return Policy(0.5, layers=layers, recovery=recovery, scheme=scheme, pruning=Pruning(**pruning))


POLICIES = [
    policy("linear", "linear", "dynamic", Recovery(1, distiller="relation", patience=1), Scheme("entropy"), criterion="taylor"),
    policy("pca", "linear", "linear", Recovery(1, distiller="feature", mutual=True), Scheme("percentile"), reduction="merge"),
    policy("rank", "power_of_two", "k_means", Recovery(1, data="synthetic", optimizer="adamw"), Scheme("min_max", activations="signed"), criterion="random", scope="global"),
    policy("k_means", "linear", "linear", Recovery(1, distiller="attention", data="unlabelled", optimizer="adafactor"), Scheme(weights="tensor"), reduction="lasso"),
    policy("linear", "linear", "linear", Recovery(1, steps=("prune", "equalize", "quantize", "train"), distiller="hard"), Scheme(), reduction="reconstruct", steps=2),
    policy("linear", "linear", "linear", Recovery(2, steps=("admm", "prune", "train", "adaround", "correct_bias", "awq", "gptq")), Scheme(activations="symmetric")),
    policy("linear", "linear", "linear", Recovery(2, steps=("slimming", "prune", "train")), Scheme(), criterion="bn_scale"),
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Workload:
    return load_workload(TINY)


@pytest.mark.parametrize(
    "chosen", POLICIES, ids=lambda chosen: f"{'+'.join(chosen.recovery.steps)}-{chosen.recovery.distiller}"
)
def test_compression_makes_the_same_candidate_on_another_device(
    tiny: Workload, device: torch.device, chosen: Policy
) -> None:
    here, there = compressed(tiny, chosen), compressed(on_device(tiny, device), chosen)
    assert {device_of_model(there.model), device_of_model(here.model)} == {device, torch.device("cpu")}
    assert_same(here, there)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("chosen", POLICIES, ids=lambda chosen: "+".join(chosen.recovery.steps))
def test_compression_runs_on_a_gpu(tiny: Workload, chosen: Policy) -> None:
    made = compressed(placed(tiny, "cuda"), chosen)
    assert device_of_model(made.model).type == "cuda"
    assert all(value.isfinite().all() for value in made.model.state_dict().values())


class Reader(nn.Module):
    """A recurrent network that classifies by its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.lstm = nn.GRU(3, 8, batch_first=True), nn.LSTM(8, 8, batch_first=True)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.lstm(self.gru(x)[0])[0][:, -1])


def test_recurrent_layers_are_compressed_on_another_device(device: torch.device) -> None:
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(64, 5, 3), torch.arange(64) % 2)
    workload = adopt_workload(Workload(Reader(), data, data, data, data, torch.randn(1, 5, 3)), "reader", Path.cwd())
    recurrent = {name: "dynamic" for name, module in workload.model.named_modules() if isinstance(module, nn.RNNBase)}
    assert len(recurrent) == 2
    chosen = Policy(0.5, recurrent=recurrent, recovery=Recovery(1), pruning=Pruning(reduction="reconstruct"))
    assert_same(compressed(workload, chosen), compressed(on_device(workload, device), chosen))


def assert_same(here: Candidate, there: Candidate) -> None:
    own, other = here.model.state_dict(), there.model.state_dict()
    assert own.keys() == other.keys()
    for name, values in own.items():
        assert torch.equal(values, other[name].cpu()), name
    for part in ("weights", "inputs", "additions", "codes", "bfloat16", "recurrent"):
        assert getattr(here.quantization, part).keys() == getattr(there.quantization, part).keys()
    for name, grid in here.quantization.inputs.items():
        np.testing.assert_array_equal(grid.scale, there.quantization.inputs[name].scale)
    for name, weight in here.quantization.weights.items():
        np.testing.assert_array_equal(weight.integers, there.quantization.weights[name].integers)


@pytest.mark.usefixtures("short_timings")
def test_a_trial_and_the_sensitivity_find_the_same_on_another_device(
    tmp_path: Path, tiny: Workload, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for where in (torch.device("cpu"), device):
        monkeypatch.setattr(
            prepared_study, "loaded_workload", lambda *_, where=where, **_options: on_device(tiny, where)
        )
        prepared = prepare(spec())
        folder = tmp_path / where.type
        artifact = lower_reference(prepared.context, folder)
        reference = with_scores(prepared.context, artifact, 1.0, ReferenceRecord("float32", "", ""))
        setup = WorkerSetup(TINY, {}, folder, prepared.target, prepared.groups, 0, 64, reference=reference)
        worker = Worker(setup, prepared.context.workload)
        stages = list(worker.run(POLICIES[4], folder / "trial"))
        assert [(stage.name, stage.reason) for stage in stages][-1] == ("recovered", None)
        measured = [(each.name, each.value) for stage in stages for each in stage.measurements]
        damage = [record.kl.value for record in sensitivity.measured(prepared, sensitivity.probes(prepared.space))]
        found.append((reference.validation.value, damage, [pair for pair in measured if not pair[0].startswith(TIMED)]))
        assert damage
    assert found[0] == found[1]


def spec(**compute: object) -> StudySpec:
    document = {
        "study": "there",
        "workload": TINY,
        "target": "cpu-torch",
        "objectives": ["accuracy_drop", "flops"],
        "budget": {"trials": 30},
        "space": {"float_precision": ["float32"], "weight_bits": [4, 32], "activation_bits": [8, 32]},
        "compute": compute,
    }
    return StudySpec.from_document(document, "study.yaml", Path.cwd())


def test_what_a_model_keeps_outside_its_state_moves_with_it(tiny: Workload, device: torch.device) -> None:
    model = deepcopy(tiny.model)
    model.scale = torch.ones(1)  # neither parameter nor buffer
    model.register_forward_hook(lambda module, _inputs, outputs: outputs * module.scale)
    weight = torch.ones(2)
    there = on_device(replace(tiny, model=model, loss=nn.CrossEntropyLoss(weight)), device)
    assert device_of(there.example_input) == device == there.model.scale.device
    assert there.loss_function(there.model(there.example_input), torch.zeros(1).long().to(device)) > 0
    assert model.scale.device == weight.device == torch.device("cpu")


class Read(Dataset):
    """The tiny workload's samples, read one by one."""

    def __init__(self, samples: TensorDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        inputs, target = self.samples[index]
        return inputs, int(target)


def test_a_training_in_all_its_ways_of_computing_is_the_same_on_another_device(
    tiny: Workload, device: torch.device, tmp_path: Path
) -> None:
    """Accumulated batches, channels last, outputs of the teacher that are stored and read back, a checkpoint taken up."""
    read = Read(tiny.train)
    task = adopt_workload(replace(tiny, model=deepcopy(tiny.model), train=read), "read", Path.cwd())
    settings = Recovery(2, 0.05, accumulate=2, channels_last=True, stored_teacher=True)
    made = []
    for where in (torch.device("cpu"), device):
        there, ran = on_device(replace(task, model=deepcopy(task.model)), where), []
        there.model.register_forward_hook(lambda _model, inputs, _outputs, ran=ran: ran.append(len(inputs[0])))
        student = deepcopy(tiny.model).to(where)
        checkpoint = Checkpoint(tmp_path / where.type / "policy" / "training.pt", 0.0)
        for epochs in training(student, there, settings, 2, 0, 16, checkpoint=checkpoint):
            if epochs > 1:
                break  # as where its process ends
        student = deepcopy(tiny.model).to(where)
        train(student, there, settings, 2, 0, 16, checkpoint=checkpoint)
        assert device_of_model(student) == where
        made.append(({name: values.cpu() for name, values in student.state_dict().items()}, ran))
        assert [*(tmp_path / where.type / "teacher").glob("*.records")]
    (here, ran), (there, ran_there) = made
    assert ran == ran_there
    assert sum(ran) < 2 * len(read) + 2 * len(tiny.calibration)
    for name, values in here.items():
        assert torch.equal(values, there[name]), name


class Here:
    """What `RankProcesses` is, with this process as the only rank."""

    def __init__(self, work: Callable[[], Trained], _count: int, _device: str) -> None:
        self.run = work


def test_a_rank_has_all_of_its_models_on_its_device(
    tmp_path: Path, tiny: Workload, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a workload that comes on another one, as one that is on the first GPU does."""
    model = deepcopy(tiny.model)
    model.scale = torch.ones(1)
    model.register_forward_hook(lambda module, _inputs, outputs: outputs * module.scale)
    there = on_device(replace(tiny, model=model), device)
    for name, stand_in in (("RankProcesses", Here), ("own_device", lambda _: device)):
        monkeypatch.setattr(recoveries, name, stand_in)
    monkeypatch.setattr(recoveries.Recoveries, "processes", 2)
    setup = WorkerSetup(TINY, {}, tmp_path, load_target("cpu-torch"), (), 0, 64, compute=ComputeSpec(device="cpu"))
    student = deepcopy(there.model)
    *_, (trained, _) = recoveries.Recoveries(setup, there).run(Policy(recovery=Recovery(1)), student, (), None, None)
    assert trained is not None
    assert trained.scale.device == device_of_model(trained) == device
    assert student.scale.device == device


def test_a_model_that_makes_tensors_on_the_processor_is_refused_by_name(tiny: Workload, device: torch.device) -> None:
    model = deepcopy(tiny.model)
    model.register_forward_hook(lambda _module, _inputs, outputs: outputs + torch.ones(2))
    with pytest.raises(
        WorkloadError, match=r"^model does not run on host: .*compute\.device: cpu leaves it where it is$"
    ):
        on_device(replace(tiny, model=model), device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_named(tiny: Workload) -> None:
    assert placed(tiny, "auto") is placed(tiny, "cpu") is tiny
    with pytest.raises(WorkloadError, match=r"^compute\.device is cuda, and torch finds no CUDA GPU on "):
        placed(tiny, "cuda")


@pytest.mark.parametrize(
    ("compute", "gpus_there", "wanted"),
    [
        ({}, 0, {"CPU": 1}),
        ({}, 8, {"CPU": 1, "GPU": 1}),
        ({"device": "cpu"}, 8, {"CPU": 1}),
        ({"device": "cuda", "gpus": 0.25, "cpus": 4}, 0, {"CPU": 4, "GPU": 0.25}),
    ],
)
def test_eight_gpus_are_eight_workers(compute: dict[str, object], gpus_there: float, wanted: dict[str, float]) -> None:
    assert worker_resources(ComputeSpec(**compute), gpus_there) == wanted


@pytest.mark.parametrize(
    ("compute", "problem"),
    [
        ({"device": "gpu"}, "compute.device: "),
        ({"gpus": 0}, "compute.gpus: "),
        ({"gpus": 1.5}, "compute: gpus is a whole number or a fraction below 1, not 1.5"),
        ({"data_workers": -1}, "compute.data_workers: "),
        ({"cores": 4}, "compute.cores: "),
    ],
)
def test_bad_compute_is_one_line(compute: dict[str, object], problem: str) -> None:
    with pytest.raises(StudyFileError, match=rf"^study\.yaml: {problem}[^\n]*$"):
        spec(**compute)


def test_gpus_that_cannot_share_a_batch_are_refused_and_a_stored_study_is_read() -> None:
    chosen = spec(gpus=3)
    assert StudySpec.from_json(chosen.to_json()) == chosen
    with pytest.raises(
        StudyFileError, match=r"^study\.yaml: compute\.gpus: 3 GPUs cannot share recovery\.batch_size 64 "
    ):
        check_target(chosen, load_target("cpu-torch"))
