"""The metrics that a workload may name, or bring: equal to what others compute, however a split is cut, and a loss is a loss."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torchmetrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from slimfront.core.errors import EvaluationError, WorkloadError
from slimfront.evaluators.kept_outputs import Keeping, every
from slimfront.evaluators.scores import Scores, Scoring
from slimfront.evaluators.tallies import MOST_GROUPS
from slimfront.workloads.metrics import METRIC_NAMES, flaw_of_metric, misfit, quality_of
from slimfront.workloads.workload import Workload
from torch import Tensor, nn
from torch.nn import functional


def scored(outputs: Tensor, targets: Tensor, metric: object, batch: int = 5) -> Scores:
    data = [*zip(outputs, targets, strict=True)]
    workload = Workload(nn.Identity(), data, data, data, data, outputs[:1], metric)
    return Scoring(workload, len(outputs)).scores(zip(outputs.split(batch), targets.split(batch), strict=True))


@dataclass(frozen=True)
class Case:
    """A metric with outputs and targets made for it, and what another library says."""

    metric: str
    outputs: tuple[int, ...]
    targets: tuple[int, ...] | None
    classes: int
    expected: object

    def draw(self, n: int, seed: int, noise: float) -> tuple[Tensor, Tensor]:
        """Targets, and outputs that follow them but for some noise."""
        generator = torch.Generator().manual_seed(seed)
        if not self.classes:
            targets = torch.randn(n, *self.targets, generator=generator) * 3 + 5
            outputs = targets.reshape(n, *self.outputs)
        else:
            targets = torch.randint(0, self.classes, (n, *self.targets), generator=generator)
            hot = functional.one_hot(targets, self.classes).float()
            axis = {"perplexity": -1, "token_accuracy": -1}.get(self.metric, 1)
            outputs = targets.float() if self.outputs == self.targets else hot.movedim(-1, axis)
            outputs = outputs.reshape(n, *self.outputs) * 2
        return outputs + noise * torch.randn(outputs.shape, generator=generator), targets


def pick(outputs: np.ndarray) -> np.ndarray:
    return outputs.argmax(1)


CASES = {
    "top1": Case("top1", (4,), (), 4, lambda o, t: sk.accuracy_score(t, pick(o))),
    "top5": Case("top5", (8,), (), 8, lambda o, t: sk.top_k_accuracy_score(t, o, k=5, labels=range(8))),
    "f1": Case("f1", (4,), (), 4, lambda o, t: sk.f1_score(t, pick(o), average="macro", zero_division=0)),
    "auroc of classes": Case("auroc", (3,), (), 3, lambda o, t: sk.roc_auc_score(t, torch.tensor(o).double().softmax(1), multi_class="ovr")),
    "auroc of one logit": Case("auroc", (), (), 2, lambda o, t: sk.roc_auc_score(t, o)),
    "auroc of labels": Case("auroc", (3,), (3,), 2, lambda o, t: sk.roc_auc_score(t, o)),
    "mse": Case("mse", (), (), 0, lambda o, t: sk.mean_squared_error(t, o)),
    "mse of several": Case("mse", (3,), (3,), 0, lambda o, t: sk.mean_squared_error(t, o)),
    "mae of one column": Case("mae", (1,), (), 0, lambda o, t: sk.mean_absolute_error(t, o[:, 0])),
    "r2": Case("r2", (), (), 0, lambda o, t: sk.r2_score(t, o)),
    "r2 of several": Case("r2", (3,), (3,), 0, lambda o, t: sk.r2_score(t, o)),
    "r2 of maps": Case("r2", (2, 3, 3), (2, 3, 3), 0, lambda o, t: sk.r2_score(t.ravel(), o.ravel())),
    "pearson": Case("pearson", (), (), 0, lambda o, t: stats.pearsonr(t, o).statistic),
    "pearson of several": Case("pearson", (2,), (2,), 0, lambda o, t: np.mean([stats.pearsonr(t[:, i], o[:, i]).statistic for i in (0, 1)])),
    "spearman": Case("spearman", (1,), (1,), 0, lambda o, t: stats.spearmanr(t.ravel(), o.ravel()).statistic),
    "pixel_accuracy": Case("pixel_accuracy", (3, 4, 5), (4, 5), 3, lambda o, t: (pick(o) == t).mean()),
    "miou": Case("miou", (3, 4, 5), (4, 5), 3, lambda o, t: sk.jaccard_score(t.ravel(), pick(o).ravel(), average="macro")),
    "perplexity": Case("perplexity", (6, 9), (6,), 9, lambda o, t: math.exp(functional.cross_entropy(torch.tensor(o).double().flatten(0, 1), torch.tensor(t).flatten()))),
    "token_accuracy": Case("token_accuracy", (6, 9), (6,), 9, lambda o, t: (o.argmax(2) == t).mean()),
}  # fmt: skip


def test_every_name_is_held_against_another_library():
    assert {case.metric for case in CASES.values()} == set(METRIC_NAMES)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@settings(max_examples=5, deadline=None)
@given(n=st.integers(40, 250), seed=st.integers(0, 99), batch=st.integers(1, 64), noise=st.floats(0.3, 3))
def test_a_named_metric_is_what_others_compute_however_a_split_is_cut(case, n, seed, batch, noise):
    outputs, targets = case.draw(n, seed, noise)
    scores = scored(outputs, targets, case.metric, batch)
    assert scores.value == pytest.approx(case.expected(outputs.numpy(), targets.numpy()), rel=1e-4, abs=1e-6)
    assert scores.value == pytest.approx(scored(outputs, targets, case.metric, n).value, rel=1e-9)
    low, high, method = scores.interval()
    assert low <= scores.value <= high
    assert low < high or scores.value == 1
    assert "wilson" in method or f"{min(n, -(-n // -(-n // MOST_GROUPS)))} groups" in method or "over samples" in method


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_drop_is_positive_exactly_when_quality_was_lost(case):
    clean, targets = case.draw(150, 0, 0.5)
    worse = clean + 4 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    reference, ours = scored(clean, targets, case.metric), scored(worse, targets, case.metric)
    drop, low, high, method = ours.drop_from(reference)
    assert 0 < low <= drop <= high
    assert drop == pytest.approx(abs(ours.value - reference.value))
    assert method.startswith("paired-")
    back = reference.drop_from(ours)
    assert back[:3] == pytest.approx((-drop, -high, -low))
    assert reference.drop_from(reference)[:3] == (0, 0, 0)
    is_up = METRIC_NAMES[case.metric].higher_is_better
    assert (ours.value < reference.value) == is_up
    assert misfit(case.metric, clean[:1], targets[0]) is None


def test_positions_that_do_not_count_do_not_count():
    outputs, targets = CASES["miou"].draw(20, 0, 1.0)
    some = torch.rand(targets.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    masked = targets.where(~some, -100).where(torch.arange(5) > 0, 255)
    kept = (masked != -100) & (masked != 255)
    found = scored(outputs, masked, "pixel_accuracy").value
    assert found == pytest.approx(float((outputs.argmax(1) == targets)[kept].float().mean()))
    loss = Workload(nn.Identity(), *[[(outputs[0], targets[0])]] * 4, outputs[:1], "miou").loss_function
    torch.testing.assert_close(loss(outputs, masked), functional.cross_entropy(outputs, masked.where(kept, -100)))


def test_scores_of_logits_do_not_depend_on_which_batch_they_come_in():
    """torchmetrics takes a batch whose numbers all lie in [0, 1] for probabilities, and makes those of any other."""
    logits, targets = torch.tensor([0.2, 0.9, -3.0, 4.0]), torch.tensor([0, 1, 0, 1])
    assert {scored(logits, targets, "auroc", batch).value for batch in (1, 2, 4)} == {1.0}


class Worst(torchmetrics.Metric):
    """The largest error: lower is better; states merge by their maximum."""

    higher_is_better, full_state_update, is_differentiable = False, False, False
    unit = "mm"

    def __init__(self) -> None:
        super().__init__()
        self.add_state("worst", torch.zeros(()), dist_reduce_fx="max")

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.worst = torch.maximum(self.worst, (outputs - targets).abs().max())

    def compute(self) -> Tensor:
        return self.worst


class Unmerged(Worst):
    """Its state says nothing when it is merged."""

    def __init__(self) -> None:
        torchmetrics.Metric.__init__(self)
        self.add_state("worst", torch.zeros(()), dist_reduce_fx=lambda states: states[0] * 0)


@pytest.mark.parametrize("metric", [Worst(), Unmerged()], ids=["merged", "not merged"])
def test_a_metric_of_ones_own_is_taken_with_its_direction_and_unit(metric):
    outputs, targets = CASES["mse"].draw(300, 0, 1.0)
    reference, ours = scored(outputs, targets, metric), scored(outputs + 0.5, targets, metric)
    assert reference.value == pytest.approx(float((outputs - targets).abs().max()))
    drop, low, high, method = ours.drop_from(reference)
    assert low <= drop <= high
    assert drop == pytest.approx(ours.value - reference.value)
    assert drop > 0
    assert ("over the values of" in method) == isinstance(metric, Unmerged)
    own_low, own_high, _ = ours.interval()
    assert own_low < own_high
    quality = quality_of(metric, reference.value)
    assert (quality.unit, quality.higher_is_better) == ("mm", False)
    assert quality.margin == pytest.approx(0.1 * reference.value)
    assert metric.worst == 0  # the user's own is not updated


def test_a_function_may_say_which_way_is_better_and_in_what_unit():
    def error(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs - targets).abs().mean())

    error.higher_is_better, error.unit = False, "K"
    outputs, targets = CASES["mse"].draw(80, 0, 1.0)
    drop, low, _, _ = scored(outputs + 3, targets, error).drop_from(scored(outputs, targets, error))
    assert drop >= low > 0
    assert quality_of(error, 2.0).words == "error (K, lower is better)"
    assert quality_of(lambda o, t: 0.0, 0.9).words == "<lambda> (score, higher is better)"


def test_outputs_too_large_to_resample_are_judged_by_groups(monkeypatch):
    monkeypatch.setattr("slimfront.evaluators.tallies.MOST_BYTES", 100)
    scores = scored(*CASES["r2"].draw(200, 0, 1.0), lambda o, t: -float((o - t).square().mean()))
    low, high, method = scores.interval()
    assert method == "bootstrap over the values of 20 groups of samples"
    monkeypatch.undo()
    plain = scored(*CASES["r2"].draw(200, 0, 1.0), lambda o, t: -float((o - t).square().mean())).interval()
    assert (low, high) == pytest.approx(plain[:2], rel=0.1)


@pytest.mark.parametrize(
    ("metric", "problem"),
    [
        ("topp1", "must be one of top1"),
        (torchmetrics.MetricCollection([torchmetrics.MeanSquaredError()]), "must be a name, a function"),
        (torchmetrics.MeanMetric(), "does not say which way is better"),
        (nn.MSELoss(), "must be a name, a function"),
        (3, "must be a name, a function"),
    ],
)
def test_what_is_no_metric_is_refused(metric, problem):
    assert problem in flaw_of_metric(metric)


@pytest.mark.parametrize(
    ("metric", "outputs", "target", "problem"),
    [
        ("r2", torch.zeros(1, 3), torch.zeros(2), "as many target values as outputs, 3; this has 2"),
        ("miou", torch.zeros(1, 3), None, r"logits \[1, classes, ...\]"),
        ("miou", torch.zeros(1, 3, 4, 4), torch.zeros(4, 4), "whole numbers of shape"),
        ("miou", torch.zeros(1, 3, 4, 4), torch.full((4, 4), 3), "classes from 0 to 2, the model's outputs, or -100; this has 3"),
        ("perplexity", torch.zeros(1, 5), None, r"logits \[1, tokens, classes\]"),
        ("token_accuracy", torch.zeros(1, 5, 7), torch.zeros(4).long(), r"whole numbers of shape \[5\]"),
        ("auroc", torch.zeros(1, 3), torch.tensor([0, 2, 1]), "3 labels, each 0 or 1"),
        ("auroc", torch.zeros(1, 3, 3), None, "one logit"),
        ("top5", torch.zeros(1, 3), None, "at least 5 classes"),
        ("f1", torch.zeros(1, 1), None, "one logit takes auroc"),
    ],
)  # fmt: skip
def test_what_a_metric_cannot_read_is_one_line(metric, outputs, target, problem):
    target = torch.zeros(()) if target is None else target
    model = nn.Identity()
    data = [(outputs[0], target)]
    with pytest.raises(WorkloadError, match=problem):
        Workload(model, data, data, data, data, outputs, metric).check()


def test_a_metric_must_compute_one_number():
    class Pair(Worst):
        def compute(self) -> dict[str, Tensor]:
            return {"worst": self.worst}

    with pytest.raises(EvaluationError, match="metric Pair must compute one number, not dict"):
        scored(*CASES["mse"].draw(10, 0, 1.0), Pair())


@given(n=st.integers(1, 60), batch=st.integers(1, 20), stride=st.integers(1, 7))
@settings(max_examples=25, deadline=None)
def test_what_was_kept_of_outputs_is_read_back(tmp_path_factory, n, batch, stride):
    outputs = {"one": torch.randn(n, 2, 3), "two": torch.randint(0, 9, (n,))}
    keeping = Keeping(tmp_path_factory.mktemp("kept"), n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slimfront.evaluators.kept_outputs.MOST_BYTES", -(-n * 32 // stride))
        for start in range(0, n, batch):
            keeping.add({name: tensor[start : start + batch] for name, tensor in outputs.items()})
    keeping.close()
    step = keeping.kept.stride
    for start in range(0, n, batch):
        stop, found = min(n, start + batch), keeping.kept.read(start, min(n, start + batch))
        for name, tensor in outputs.items():
            assert torch.equal(found[name], every(tensor[start:stop], start, step))
            assert torch.equal(found[name], tensor[[i for i in range(start, stop) if i % step == 0]])


def test_no_warning_reaches_a_user_whose_split_lacks_a_class():
    outputs, targets = torch.randn(30, 3), torch.arange(30) // 15
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 <= scored(outputs, targets, "auroc").value <= 1
