"""Accuracy of the artifact: what the runtime says of each sample, whatever the batch."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from slimfront.compression.recovery.outputs import ONE_CLASSIFIER
from slimfront.core.errors import EvaluationError
from slimfront.evaluators.accuracy import Accuracy, accuracy_measurements, mean_of, score
from slimfront.evaluators.scores import Scoring, cross_entropies
from slimfront.hardware_profiles.cards.target import load_target
from slimfront.hardware_profiles.runtimes.base import get_runtime
from slimfront.spaces.policies.candidate import Candidate
from slimfront.spaces.policies.policy import LayerPolicy, Policy
from torch import Tensor
from torch.nn import functional
from torch.utils.data import TensorDataset

INTEGERS = Policy(layers={"0": LayerPolicy(8, 8), "5": LayerPolicy(4, 8)})


@pytest.mark.parametrize("policy", [Policy(), INTEGERS], ids=["float", "integers"])
@pytest.mark.parametrize("batch", [7, 10, 53, 64])
def test_a_padded_last_batch_scores_as_samples_one_by_one(batch, policy, context, lower, tmp_path):
    data = context.workload.validation  # 53 samples
    scored = []
    for size in (1, batch):
        at = dataclasses.replace(context, target=context.target.model_copy(update={"batch": size}))
        scored.append(score(lower(policy, size).artifact, data, at, keep=tmp_path / str(size)))
    assert scored[1].n == 53
    np.testing.assert_array_equal(scored[0].metric.hits, scored[1].metric.hits)
    np.testing.assert_allclose(*(scores.kept.read(0, 53) for scores in scored), atol=1e-6)


def test_the_scores_are_the_models(context, lower, tmp_path):
    data = context.workload.validation
    scores = score(lower(Policy()).artifact, data, context, keep=tmp_path / "kept")
    with torch.no_grad():
        expected = context.workload.model(data.tensors[0])
    torch.testing.assert_close(scores.kept.read(0, 53), expected, atol=1e-5, rtol=1e-5)
    assert scores.value == int((expected.argmax(1) == data.tensors[1]).sum()) / 53


def test_the_outputs_of_earlier_batches_are_not_overwritten(context, lower, tmp_path):
    at = dataclasses.replace(context, target=context.target.model_copy(update={"batch": 1}))
    scores = score(lower(Policy(), 1).artifact, context.workload.validation, at, keep=tmp_path / "kept")
    assert len({tuple(row.tolist()) for row in scores.kept.read(0, 53)}) == 53


class Watched(TensorDataset):
    """Remembers how many threads torch had whenever a sample was asked for."""

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.threads.add(torch.get_num_threads())
        return super().__getitem__(index)


def test_torch_scores_on_the_targets_threads_and_gives_the_process_its_own_back(context, tmp_path):
    at = dataclasses.replace(context, target=load_target("cpu-torch"), runtime=get_runtime("torch"), threads=2)
    wide = dataclasses.replace(at, target=at.target.model_copy(update={"threads": 7}))
    candidate = Candidate(Policy(), context.workload.model)
    artifact = at.runtime.lower(candidate, context.workload.example_input, at.target, tmp_path / "model.pt2")
    data = Watched(*context.workload.validation.tensors)
    data.threads = set()
    assert score(artifact, data, at).n == 53
    assert data.threads == {1}
    score(artifact, data, wide)
    assert data.threads == {1, 2}  # and on no more than the process may
    assert torch.get_num_threads() == 2


def test_the_drop_is_against_the_reference(complete, lower):
    lowered = lower(INTEGERS)
    measured = {m.name: m for m in Accuracy().evaluate(lowered, complete)}
    reference = complete.reference.validation
    assert measured["accuracy_drop"].value == pytest.approx(reference.value - measured["accuracy"].value)
    assert measured["accuracy"].n == measured["accuracy_drop"].n == 53


def test_the_reference_does_not_drop(context, lower):
    measured = {m.name: m for m in Accuracy().evaluate(lower(Policy()), context)}
    drop = measured["accuracy_drop"]
    assert (drop.low, drop.value, drop.high) == (0, 0, 0)


def test_measurements_of_another_split_carry_its_name(context):
    scores = Scoring(context.workload, 4).scores([(torch.eye(4), torch.tensor([0, 1, 2, 0]))])
    made = accuracy_measurements(scores, scores, context, prefix="test_")
    assert [(m.name, m.value, m.unit) for m in made] == [
        ("test_accuracy", 0.75, "fraction"),
        ("test_accuracy_drop", 0.0, "fraction"),
    ]


def test_a_metric_of_the_users_own_is_used(context, lower):
    def metric(outputs: torch.Tensor, targets: torch.Tensor) -> float:
        return -float(functional.cross_entropy(outputs, targets))

    workload = dataclasses.replace(context.workload, metric=metric)
    measured = {
        m.name: m for m in Accuracy().evaluate(lower(Policy()), dataclasses.replace(context, workload=workload))
    }
    assert measured["accuracy"].value == pytest.approx(-measured["cross_entropy"].value, rel=1e-5)
    assert (measured["accuracy"].method, measured["accuracy_drop"].method) == (
        "bootstrap over samples",
        "paired-bootstrap over samples",
    )


def test_cross_entropy_by_hand():
    # The right class has logit 0 next to another 0, then ln 3: -ln(1/2) and -ln(3/4).
    outputs = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    measured = mean_of("cross_entropy", cross_entropies(outputs, torch.tensor([1, 0])))
    first, second = math.log(2), math.log(4 / 3)
    mean = (first + second) / 2
    half = 1.959964 * abs(first - second) / math.sqrt(2) / math.sqrt(2)
    assert (measured.value, measured.low, measured.high) == pytest.approx((mean, mean - half, mean + half), rel=1e-5)
    assert (measured.unit, measured.n) == ("nats", 2)


def test_cross_entropy_of_one_sample_has_no_spread():
    measured = mean_of("cross_entropy", cross_entropies(torch.tensor([[0.0, 0.0]]), torch.tensor([1])))
    assert measured.low == measured.value == measured.high == pytest.approx(math.log(2))


def test_kl_divergence_by_hand():
    # Uniform against (3/4, 1/4): half of ln(2/3) and half of ln 2; equal outputs up to a shift: none.
    reference = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    found = torch.tensor([[math.log(3), 0.0], [3.0, 4.0]])
    first = (math.log(2 / 3) + math.log(2)) / 2
    measured = mean_of("kl", ONE_CLASSIFIER.damage(found, reference))
    half = 1.959964 * first / math.sqrt(2) / math.sqrt(2)
    assert (measured.value, measured.low, measured.high) == pytest.approx(
        (first / 2, first / 2 - half, first / 2 + half), rel=1e-5
    )
    assert ONE_CLASSIFIER.damage(reference, reference).tolist() == [0, 0]


def test_the_damage_is_against_the_outputs_that_were_kept(context, lower, tmp_path):
    data, integers = context.workload.validation, lower(INTEGERS)
    reference = score(lower(Policy()).artifact, data, context, keep=tmp_path / "kept")
    again = score(lower(Policy()).artifact, data, context, reference=reference)
    assert again.damage.abs().max() < 1e-9
    damage = score(integers.artifact, data, context, reference=reference).damage
    outputs = score(integers.artifact, data, context, keep=tmp_path / "integers").kept.read(0, 53)
    torch.testing.assert_close(damage, ONE_CLASSIFIER.damage(outputs, reference.kept.read(0, 53)))


def test_no_class_is_picked_from_outputs_that_are_not_finite(context, lower):
    inputs, targets = (tensor.clone() for tensor in context.workload.validation.tensors)
    inputs[23, 0, 0, 0] = math.nan
    with pytest.raises(EvaluationError, match="output on sample 23 of the split is not finite"):
        score(lower(Policy()).artifact, TensorDataset(inputs, targets), context)
