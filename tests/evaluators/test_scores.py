"""Scores and their intervals: numbers worked out by hand, and properties of the bootstrap."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slimfront.core.errors import EvaluationError
from slimfront.evaluators.scores import Scores, Scoring
from slimfront.workloads.workload import Workload
from torch import Tensor, nn

LOGITS = torch.tensor([[3.0, 1, 2, 0, -1, -2], [0, 5, 1, 2, 3, 4], [9, 8, 7, 6, 5, 4], [0, 0, 0, 0, 0, 1]])


def scored(outputs: Tensor, targets: Tensor, metric: object, batch: int = 7) -> Scores:
    """The scores of outputs that come in batches."""
    data = [*zip(outputs, targets, strict=True)]
    workload = Workload(nn.Identity(), data, data, data, data, outputs[:1], metric)
    batches = zip(outputs.split(batch), targets.split(batch), strict=True)
    return Scoring(workload, len(outputs)).scores(batches)


def of_hits(*hits: int) -> Scores:
    """Scores whose samples are right where `hits` says so."""
    outputs = torch.tensor([[1.0, 0.0]] * len(hits))
    return scored(outputs, torch.tensor([1 - hit for hit in hits]), "top1")


def mean_distance(outputs: Tensor, targets: Tensor) -> float:
    return -float((outputs[:, 0] - targets).abs().mean())


def regression(count: int, error: float, seed: int = 0, shift: float = 0.0) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(count, generator=generator)
    noise = torch.randn(count, generator=generator) * error
    return scored((targets + noise + shift)[:, None], targets, mean_distance)


def test_hits_among_the_best_and_the_five_best():
    targets = torch.tensor([0, 0, 5, 5])
    assert scored(LOGITS, targets, "top1").metric.hits.tolist() == [1, 0, 0, 1]
    assert scored(LOGITS, targets, "top5").metric.hits.tolist() == [1, 0, 0, 1]
    assert scored(LOGITS, torch.tensor([2, 2, 4, 5]), "top5").metric.hits.tolist() == [1, 1, 1, 1]
    assert scored(LOGITS, targets, "top1").value == 0.5
    assert scored(LOGITS, targets.reshape(-1, 1), "top1").value == 0.5


def test_a_metric_function_has_no_hits():
    scores = scored(torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 4.0]), mean_distance)
    assert scores.metric.hits is None
    assert scores.value == -1.5
    assert set(scores.metric.resampled) == {-1.0, -1.5, -2.0}


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),
    [
        # (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4 n^2)) / (1 + z^2 / n) with z = 1.959964
        (8, 10, 0.490162, 0.943318),
        (0, 10, 0, 0.277533),
        (10, 10, 0.722467, 1),
        (390, 400, 0.954598, 0.986365),
    ],
)
def test_wilsons_interval_by_hand(hits, of, low, high):
    scores = of_hits(*[1] * hits, *[0] * (of - hits))
    assert scores.interval() == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6), "wilson")


def test_the_paired_drop_by_hand():
    ours, reference = of_hits(1, 0, 1, 0, 1), of_hits(1, 1, 1, 1, 0)
    # Differences 0, 1, 0, 1, -1: mean 0.2, variance 0.6 - 0.04 = 0.56.
    half = 1.959964 * math.sqrt(0.56) / math.sqrt(5)
    assert ours.drop_from(reference) == pytest.approx((0.2, 0.2 - half, 0.2 + half, "paired-normal"))
    back = reference.drop_from(ours)
    assert back[:3] == pytest.approx((-0.2, -0.2 - half, -0.2 + half))


@pytest.mark.parametrize(("missed", "of", "drop"), [(20, 400, 0.05), (3, 10, 0.3), (1, 1000, 0.001), (7, 100, 0.07)])
def test_the_drop_of_counts_is_the_number_a_user_would_write(missed, of, drop):
    right = of - of // 10  # of the reference: 0.9 - 0.85 is not 0.05
    reference, ours = (
        of_hits(*[1] * right, *[0] * (of - right)),
        of_hits(*[1] * (right - missed), *[0] * (of - right + missed)),
    )
    assert ours.drop_from(reference)[0] == drop


def test_no_sample_that_differs_is_no_drop_and_no_spread():
    same = of_hits(1, 0, 1)
    assert same.drop_from(same)[:3] == (0, 0, 0)


def test_pairing_is_what_makes_the_drop_narrow():
    hits = [1, 0] * 200
    ours, reference = of_hits(*hits[:-1], 0), of_hits(*hits)
    _, low, high, _ = ours.drop_from(reference)
    wilson_low, wilson_high, _ = reference.interval()
    assert high - low < (wilson_high - wilson_low) / 10


def test_a_functions_interval_holds_its_value_and_narrows_with_samples():
    few, many = regression(30, 1.0), regression(3000, 1.0)
    widths = []
    for scores in (few, many):
        low, high, method = scores.interval()
        assert method == "bootstrap over samples"
        assert low < scores.value < high
        widths.append(high - low)
    assert widths[0] > 5 * widths[1]


def test_the_paired_bootstrap_sees_that_the_same_samples_are_compared():
    reference, ours = regression(300, 1.0), regression(300, 1.0, shift=0.01)
    drop, low, high, method = ours.drop_from(reference)
    assert method == "paired-bootstrap over samples"
    assert low <= drop <= high
    whole = reference.interval()
    assert high - low < (whole[1] - whole[0]) / 10


def test_the_same_scores_have_the_same_interval():
    assert regression(50, 1.0).interval() == regression(50, 1.0).interval()


def distinct(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Biased under resampling: a sample drawn twice counts once."""
    return len(set(outputs[:, 0].tolist())) / len(outputs)


def test_the_interval_holds_the_value_of_a_metric_that_resampling_lowers():
    scores = scored(torch.arange(40.0)[:, None], torch.zeros(40), distinct)
    low, high, _ = scores.interval()
    assert low < scores.value == high == 1


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_intervals_hold_their_value_whatever_the_samples(hits, random):
    ours = of_hits(*map(int, hits))
    reference = of_hits(*[int(random.random() < 0.7) for _ in hits])
    low, high, _ = ours.interval()
    assert 0 <= low <= ours.value <= high <= 1
    drop, low, high, _ = ours.drop_from(reference)
    assert low <= drop <= high
    assert drop == pytest.approx(reference.value - ours.value)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_metric_that_is_no_finite_number_is_reported(wrong):
    with pytest.raises(EvaluationError, match=rf"^the workload's metric returned {wrong}$"):
        scored(torch.zeros(2, 1), torch.zeros(2), lambda outputs, targets: wrong)


@pytest.mark.parametrize(("wrong", "kind"), [(torch.zeros(2), r"Tensor \[2\]"), (None, "NoneType"), ("0.9x", "str")])
def test_a_metric_that_returns_no_number_is_reported_as_such(wrong, kind):
    with pytest.raises(EvaluationError, match=rf"^the workload's metric must return one number, not {kind}$"):
        scored(torch.zeros(2, 1), torch.zeros(2), lambda outputs, targets: wrong)
