"""Expected hypervolume improvement, against the hypervolume itself."""

import moocore
import numpy as np
import pytest
from slimfront.search.sampler.acquisition import expected_improvement, free_boxes


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_expected_improvement_is_the_mean_gain_of_hypervolume(objectives: int):
    draw = np.random.default_rng(objectives)
    reference = np.ones(objectives)
    points = draw.random((8, objectives))
    front = points[moocore.is_nondominated(points)]
    draws = draw.random((5, 3, objectives)) * 1.2
    draws[0, 0] = np.inf  # a broken constraint gains nothing
    before = moocore.hypervolume(front, ref=reference)
    gains = [
        [0 if np.isinf(point).any() else moocore.hypervolume(np.vstack([front, point]), ref=reference) - before
         for point in candidates] for candidates in draws
    ]  # fmt: skip
    assert expected_improvement(draws, front, reference) == pytest.approx(np.mean(gains, axis=0))
    alone = expected_improvement(np.full((1, 1, objectives), 0.5), np.zeros((0, objectives)), reference)
    assert alone == pytest.approx(0.5**objectives)


@pytest.mark.parametrize("objectives", [2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 5, 25])
def test_free_boxes_fill_all_that_a_front_leaves(objectives: int, count: int):
    draw = np.random.default_rng(count)
    points = draw.random((count, objectives))
    points = 1 - points / np.linalg.norm(points, axis=1, keepdims=True)
    points = np.concatenate([points, points[:1]])  # one twice
    reference, ideal = np.full(objectives, 1.1), -0.5
    lows, highs = free_boxes(points, reference)
    volumes = np.prod(np.maximum(highs - np.maximum(lows, ideal), 0), axis=1)
    taken = moocore.hypervolume(points, ref=reference) if count else 0.0
    assert volumes.sum() == pytest.approx(1.6**objectives - taken)
    inside = draw.uniform(ideal, 1.1, size=(200, objectives))
    held = ((inside[:, None] > lows) & (inside[:, None] < highs)).all(axis=2).sum(axis=1)
    free = ~(points[None] <= inside[:, None]).all(axis=2).any(axis=1)
    assert (held == free).all()  # in one box each, and none in what is dominated
