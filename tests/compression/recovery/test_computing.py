"""What a training computes with changes how fast it is: the weights stay those of a plain one, to rounding."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from slimfront.compression.recovery import computing
from slimfront.compression.recovery.checkpoint import Checkpoint
from slimfront.compression.recovery.train import train
from slimfront.core.errors import CompressionError
from slimfront.spaces.policies.policy import Recovery
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.utils.data import TensorDataset


class Network(nn.Module):
    """Maps [n, 3, 6, 6] to [n, 3]; `view` says how maps become rows."""

    def __init__(self, view: Callable[[Tensor], Tensor] = partial(torch.flatten, start_dim=1)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.rows = nn.Conv2d(3, 4, 3), nn.Linear(64, 3), view

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.rows(self.conv(x).relu()))


def task(model: nn.Module) -> Workload:
    inputs = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, (inputs.mean((1, 2, 3)) > 0).long())
    return Workload(model.eval(), data, data, data, data, inputs[:1])


def trained(
    batch_size: int = 16, checkpoint: Checkpoint | None = None, model: nn.Module | None = None, **settings
) -> nn.Module:
    model = model or Network()
    student = copy.deepcopy(model)
    train(student, task(model), Recovery(2, 0.05, **settings), 2, 0, batch_size, checkpoint=checkpoint)
    return student


def gap(first: nn.Module, second: nn.Module) -> float:
    """The largest difference of a weight."""
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    return max(float((one - other).detach().abs().max()) for one, other in pairs)


def test_accumulated_batches_are_one_batch_of_their_size() -> None:
    assert gap(trained(4, accumulate=4), trained(16)) < 1e-6 < gap(trained(4), trained(16))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_float16_trains_with_a_scaler_that_checkpoints_hold(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU without bfloat16."""
    plain = trained(optimizer=optimizer)
    monkeypatch.setattr(computing, "precision_of", lambda _device: torch.float16)
    half = trained(optimizer=optimizer, mixed_precision=True)
    assert 0 < gap(half, plain) < 0.05 * gap(plain, Network())
    checkpoint = Checkpoint(tmp_path / "half.pt", 0)
    saved, save = [], Checkpoint.save

    class Ended(BaseException):
        """What ends the process, as far as this test can."""

    def end_at_third(self, parts, **place) -> None:
        save(self, parts, **place)
        saved.append(parts["scaler"].state_dict())
        if len(saved) == 3:
            raise Ended

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", end_at_third)
        with pytest.raises(Ended):
            trained(checkpoint=checkpoint, optimizer=optimizer, mixed_precision=True)
    assert saved[-1]["scale"] > 1
    assert gap(trained(checkpoint=checkpoint, optimizer=optimizer, mixed_precision=True), half) == 0


def test_an_overflow_leaves_a_step_out_and_the_schedule_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "precision_of", lambda _device: torch.float16)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**40))
    half = trained(mixed_precision=True)
    assert all(bool(parameter.isfinite().all()) for parameter in half.parameters())
    assert gap(half, Network()) == 0  # eight steps halve the scale, which 2^40 is too large for


def test_channels_last_give_the_same_weights_to_rounding() -> None:
    seen: list[bool] = []

    class Watched(Network):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous())
            return super().forward(x)

    assert gap(trained(channels_last=True, model=Watched()), trained()) < 1e-6
    assert any(seen)
    seen.clear()
    trained(model=Watched())
    assert not any(seen)  # on a processor only where it is asked for


def test_a_model_that_views_its_maps_as_rows_is_refused_or_left_as_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Network(lambda maps: maps.view(len(maps), -1))
    with pytest.raises(CompressionError, match=r"channels last: RuntimeError.*recovery.channels_last: false"):
        trained(model=model, channels_last=True)
    monkeypatch.setattr(computing.Computing, "_pays_channels_last", lambda *_: True)
    with caplog.at_level(logging.WARNING):
        trained(model=model)
    assert "training with channels first" in caplog.text


@pytest.fixture
def quickly_compiled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What is compiled, traced and differentiated as the inductor would, which takes its time."""
    models: list[nn.Module] = []
    own = torch.compile

    def compile_quickly(model: nn.Module) -> object:
        models.append(model)
        return own(model, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_quickly)
    return models


def test_a_compiled_training_trains_the_student_itself(quickly_compiled: list[nn.Module]) -> None:
    for rows in (8, 12):  # another structure of the same class
        model = nn.Sequential(nn.Flatten(), nn.Linear(108, rows), nn.ReLU(), nn.Linear(rows, 3))
        student = trained(model=model, compile=True)
        assert quickly_compiled[-1] is student
        assert type(student) is nn.Sequential
        assert gap(student, trained(model=model)) < 1e-6
    assert len(quickly_compiled) == 2
    trained(compile="auto")
    assert len(quickly_compiled) == 2  # on a GPU only


def test_a_distiller_that_looks_into_the_model_trains_it_as_it_is(
    quickly_compiled: list[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert gap(trained(compile=True, distiller="feature"), trained(distiller="feature")) == 0
    assert "not compiled: the distiller feature" in caplog.text


def test_what_cannot_be_compiled_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    own, plain = torch.compile, trained()

    def refuse(_graph: object, _examples: object) -> object:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda model: own(model, backend=refuse))
    with pytest.raises(CompressionError, match=r"cannot be compiled: .*no compiler here.*recovery.compile: false"):
        trained(compile=True)
    monkeypatch.setattr("slimfront.compression.recovery.train.wants_compiling", lambda *_: True)
    with caplog.at_level(logging.WARNING):
        assert gap(trained(compile="auto"), plain) == 0
    assert "training without" in caplog.text
