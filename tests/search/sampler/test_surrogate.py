"""What is believed of policies that were not tried: damage, costs, and how sure each is."""

import math

import numpy as np
import pytest
from slimfront.search.sampler.dimensions import decode, encode, search_dimension
from slimfront.search.sampler.surrogate.cost_model import CostModel
from slimfront.search.sampler.surrogate.damage_model import StructuredMean
from slimfront.search.sampler.surrogate.damage_posterior import DamagePosterior
from slimfront.search.sampler.surrogate.surrogate import History, Surrogate

KNOBS = 12
BITS = (2, 3, 4, 6, 8, 32)
NAMES = [f"layer{index:02d}.weight_bits" for index in range(KNOBS)]
generator = np.random.default_rng(3)
HURT, SIZE = generator.lognormal(-1, 1, KNOBS), generator.lognormal(0, 1, KNOBS)


def kl_of(bits) -> float:
    """Divergence of a network whose layers' damage adds up."""
    return sum(hurt * 4.0 ** (2 - b) for hurt, b in zip(HURT, bits, strict=True) if b < 32)


def test_the_mean_recovers_an_additive_damage():
    knobs = [search_dimension(name, "weight_bits", BITS, 32) for name in NAMES]
    codes = np.random.default_rng(0).integers(len(BITS), size=(80, KNOBS))
    damage = np.log([kl_of([BITS[c] for c in row]) + 1e-3 for row in codes])
    mean = StructuredMean(knobs)
    mean.fit(codes[:60], damage[:60])
    errors = mean.predict(codes[60:]) - damage[60:]
    assert np.sqrt((errors**2).mean()) < 0.35 * damage[60:].std()
    assert mean.predict(np.full((1, KNOBS), 5))[0] == pytest.approx(math.log(1e-3), abs=1.5)


OF_ALL_KINDS = [
    search_dimension("a.weight_bits", "weight_bits", BITS, 32),
    search_dimension("b.width", "width", (1.0, 0.5), 1.0),
    search_dimension("c.channels", "channels", (0.0, 0.25, 0.5), 0.0),
    search_dimension("d.recovery_epochs", "recovery_epochs", (0, 1, 2), 0),
]


FEW = np.array([[0, 1, 2, 0], [2, 0, 0, 1], [3, 1, 1, 2], [5, 0, 2, 0]])


def test_the_gradient_of_the_mean_is_that_of_finite_differences():
    mean, codes = StructuredMean(OF_ALL_KINDS), FEW
    at = np.random.default_rng(0).normal(size=len(mean._scaled))
    errors = np.array([1.0, -2.0, 0.5, 3.0])
    design = mean._design(codes)
    _, pullback = mean._values_and_pullback(at, design)
    for index, slope in enumerate(pullback(errors)):
        step = np.eye(len(at))[index] * 1e-6
        high, low = (mean._values_and_pullback(at + sign * step, design)[0] @ errors for sign in (1, -1))
        assert slope == pytest.approx((high - low) / 2e-6, rel=1e-4, abs=1e-6)


def test_the_derivatives_of_the_damage_are_finite_differences():
    mean, codes = StructuredMean(OF_ALL_KINDS), FEW
    mean.fit(codes, np.array([-1.0, -2.5, -3.0, -6.0]))
    assert mean.predict_drawn(codes, mean.parameters[None])[0] == pytest.approx(mean.predict(codes))
    for index, slopes in enumerate(mean.jacobian(codes).T):
        step = np.eye(len(mean.parameters))[index] * 1e-5
        low, high = mean.predict_drawn(codes, mean.parameters + np.stack([-step, step]))
        assert slopes == pytest.approx((high - low) / 2e-5, rel=1e-4, abs=1e-6)


def posterior_of(codes: np.ndarray, damage: np.ndarray, pending=()) -> DamagePosterior:
    knobs = [search_dimension(name, "weight_bits", BITS, 32) for name in NAMES]
    mean = StructuredMean(knobs)
    mean.fit(codes, damage)
    pending = np.array(pending, dtype=int).reshape(-1, KNOBS)
    return DamagePosterior(mean, lambda rows: rows / (len(BITS) - 1), codes, damage, pending)


def drawn(posterior: DamagePosterior, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the damage of codes."""
    draw = np.random.default_rng(0)
    draws = posterior.draws(codes, draw.standard_normal(512), draw)
    return draws.mean(axis=0), draws.std(axis=0)


def test_damage_is_known_where_it_was_tried_and_open_where_it_was_not():
    whole = np.full((1, KNOBS), BITS.index(32))
    tried, untried = whole.copy(), whole.copy()
    tried[0, 0], untried[0, 5] = 0, 0
    posterior = posterior_of(np.concatenate([whole, tried]), np.array([-6.9, -1.0]))
    mean, deviation = drawn(posterior, np.concatenate([tried, untried]))
    assert mean[0] == pytest.approx(-1.0, abs=0.15)
    assert deviation[0] < 0.25
    assert deviation[1] > 2 * deviation[0]
    _, believed = drawn(posterior_of(np.concatenate([whole, tried]), np.array([-6.9, -1.0]), untried), untried)
    assert believed[0] < 0.25  # what runs counts as if it had turned out as predicted


def test_candidates_descend_from_damages_that_the_trials_leave_likely():
    """A choice whose damage was measured shifts little, one that was never tried as far as its prior allows."""
    whole = np.full((1, KNOBS), BITS.index(32))
    tried = whole.copy()
    tried[0, 0] = 0
    posterior = posterior_of(np.concatenate([whole, tried]), np.array([-6.9, -1.0]))
    spread = posterior.shifts(512, np.random.default_rng(0)).std(axis=0)
    assert spread[0] < 0.5
    assert spread[len(BITS)] > 1.0


def test_damages_lie_where_the_posterior_expects_them():
    """Networks as the prior imagines them: errors of the prediction in units of its own deviation are of size one."""
    knobs = [search_dimension(name, "weight_bits", BITS, 32) for name in NAMES]
    truth, errors = StructuredMean(knobs), []
    for seed in range(6):
        draw = np.random.default_rng(seed)
        codes = draw.integers(1, len(BITS), size=(24, KNOBS))
        damage = truth.predict_drawn(codes, draw.standard_normal((1, len(truth.parameters))))[0]
        damage += draw.normal(0, 0.2, len(damage))
        if np.median(damage) > 0:  # broken models weigh less
            continue
        mean, deviation = drawn(posterior_of(codes[:16], damage[:16]), codes[16:])
        errors.extend((damage[16:] - mean) / np.hypot(deviation, 0.2))
    assert len(errors) >= 24
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.5


def test_codes_are_parameters_again():
    knobs = [search_dimension("a", "weight_bits", (8, 2, 32), 32), search_dimension("b", "sparsity", (0.0, "2:4"), 0.0)]
    for parameters in ({"a": 2, "b": "2:4"}, {"a": 32, "b": 0.0}):
        assert decode(knobs, encode(knobs, parameters)) == parameters
    assert list(encode(knobs, {"a": 8})) == [0, 0]  # a branch not taken counts as neutral
    assert list(knobs[0].positions) == [0.5, 1.0, 0.0]


def test_one_knob_s_choices_are_judged_as_whole_policies_are():
    knobs = [*(search_dimension(name, "weight_bits", BITS, 32) for name in NAMES[:4]),
             *(search_dimension(f"g{index}.channels", "channels", (0.0, 0.25, 0.5), 0.0) for index in range(2)),
             search_dimension("s.width", "width", (1.0, 0.5), 1.0),
             search_dimension("r.recovery_epochs", "recovery_epochs", (0, 1, 3), 0)]  # fmt: skip
    draw = np.random.default_rng(0)
    codes = np.stack([draw.integers(len(knob.choices), size=30) for knob in knobs], axis=1)
    mean = StructuredMean(knobs)
    mean.fit(codes, draw.normal(-2, 1, 30))
    shifts, which = draw.normal(size=(2, len(mean.theta))), draw.integers(2, size=30)
    for index, knob in enumerate(knobs):
        found = mean.predict_options(codes, index, len(knob.choices), shifts, which)
        for option in range(len(knob.choices)):
            changed = codes.copy()
            changed[:, index] = option
            assert found[:, option] == pytest.approx(mean.predict_shifted(changed, shifts, which))


def test_a_broken_width_says_little_of_channels():
    """A quarter of everything breaks the model; half the channels of half of it still do as little as half the channels do."""
    groups = [search_dimension(f"g{index}.channels", "channels", (0.0, 0.5), 0.0) for index in range(4)]
    knobs = [*groups, search_dimension("student.width", "width", (1.0, 0.5, 0.25), 1.0)]
    whole, half, quarter = ([0, 0, 0, 0, width] for width in range(3))
    mean = StructuredMean(knobs)
    mean.fit(np.array([whole, [1, 1, 1, 1, 0], half, quarter]), np.array([-6.9, -3.5, -3.0, 1.2]))
    (both,) = mean.predict(np.array([[1, 1, 1, 1, 1]]))
    assert both == pytest.approx(np.log(np.exp(-3.5) + np.exp(-3.0)), abs=0.4)


def test_channels_do_more_damage_at_a_width_where_trials_say_so():
    groups = [search_dimension(f"g{index}.channels", "channels", (0.0, 0.5), 0.0) for index in range(4)]
    mean = StructuredMean([*groups, search_dimension("student.width", "width", (1.0, 0.5), 1.0)])
    codes = np.array(
        [[*(index == one for index in range(4)), width] for one in range(4) for width in (0, 1)], dtype=int
    )
    codes = np.concatenate([codes, [[0, 0, 0, 0, 1]]])
    mean.fit(codes, np.array([-6.0, -2.0] * 4 + [-4.0]))
    assert mean.predict(codes)[1::2] == pytest.approx([-2.0] * 4, abs=0.4)
    assert mean.predict(codes)[:8:2] == pytest.approx([-6.0] * 4, abs=0.4)


def test_a_lucky_quality_counts_as_its_damage_makes_likely():
    surrogate = Surrogate(
        [search_dimension("a.weight_bits", "weight_bits", BITS, 32)], ["quality", "measured"], [1, 1], None
    )
    damage = np.log(np.array([0.001, 0.01, 0.1, 0.1, 0.1, np.nan]))
    drops = np.array([0.0, 0.01, 0.08, 0.02, 0.11, 0.05])  # the fourth is lucky, the fifth is not
    codes = np.array([[5], [4], [1], [2], [3], [0]])
    history = History(codes, damage, np.stack([drops, np.arange(6.0)], axis=1), {})
    surrogate.fit(history, np.zeros((0, 1), dtype=int))
    assert surrogate.sobered(history)[:, 0] == pytest.approx([0.0, 0.01, 0.08, 0.07, 0.11, 0.05])
    assert surrogate.sobered(history)[:, 1] == pytest.approx(np.arange(6.0))


@pytest.mark.parametrize("adds", [True, False])
def test_a_cost_adds_up_or_multiplies_as_its_data_say(adds: bool):
    knobs = [search_dimension(name, "weight_bits", BITS, 32) for name in NAMES]
    codes = np.random.default_rng(2).integers(len(BITS), size=(120, KNOBS))
    bits = np.array(BITS)[codes]
    costs = bits @ SIZE if adds else np.exp(np.log(bits) @ SIZE / SIZE.sum())
    model = CostModel(knobs)
    model.fit(codes[:100], np.zeros((100, 0)), np.log(costs[:100]))
    mean, deviation = model.predict(codes[100:], np.zeros((20, 0)))
    assert mean == pytest.approx(np.log(costs[100:]), abs=0.02)
    assert model.mean(codes[100:], np.zeros((20, 0))) == pytest.approx(mean)
    assert (deviation < 0.02).all()


def test_a_cost_that_is_what_is_counted_is_known_after_few_trials():
    """And what is counted misleads no cost that has nothing to do with it."""
    knobs = [search_dimension(name, "weight_bits", BITS, 32) for name in NAMES]
    draw = np.random.default_rng(2)
    codes = draw.integers(len(BITS), size=(220, KNOBS))
    counted, unrelated = np.log(np.array(BITS)[codes] @ SIZE)[:, None], draw.normal(size=(220, 1))
    costs = 30 + np.exp(counted[:, 0])  # with a head that no choice makes smaller
    model = CostModel(knobs)
    model.fit(codes[:15], counted[:15], np.log(costs[:15]))
    mean, deviation = model.predict(codes[15:], counted[15:])
    assert mean == pytest.approx(np.log(costs[15:]), abs=0.02)
    assert model.mean(codes[15:], counted[15:]) == pytest.approx(mean)
    assert (deviation < 0.02).all()
    model.fit(codes[:200], unrelated[:200], np.log(costs[:200]))
    assert model.mean(codes[200:], unrelated[200:]) == pytest.approx(np.log(costs[200:]), abs=0.03)


def test_the_luck_of_one_measurement_is_no_uncertainty_of_a_cost():
    knobs = [search_dimension(name, "weight_bits", BITS, 32) for name in NAMES[:3]]
    draw = np.random.default_rng(2)
    codes, nothing = draw.integers(len(BITS), size=(200, 3)), np.zeros((200, 0))
    logs = 0.02 * np.array(BITS)[codes].sum(axis=1) + draw.normal(0, 0.1, 200)
    model = CostModel(knobs)
    model.fit(codes, nothing, logs)
    mean, deviation = model.predict(codes, nothing)
    assert np.std(logs - mean) == pytest.approx(0.1, abs=0.02)
    assert (deviation < 0.06).all()  # 16 choices are known from 200 measurements


def test_channels_and_widths_may_be_names():
    names = search_dimension("a.channels", "channels", ("all", "few"), "all")
    fractions = search_dimension("a.channels", "channels", (0.0, 0.5), 0.0)
    width = search_dimension("s.width", "width", ("wide", "slim"), "wide")
    for knob, other in (
        (names, width),
        (fractions, width),
        (names, search_dimension("s.width", "width", (1.0, 0.5), 1.0)),
    ):
        mean = StructuredMean([knob, other])
        both, one, none = mean.predict(np.array([[1, 1], [1, 0], [0, 0]]))
        assert both > one > none


def random_history(damage_of) -> History:
    codes = np.random.default_rng(0).integers(len(BITS), size=(40, KNOBS))
    damage = np.array([damage_of([BITS[c] for c in row]) for row in codes])
    return History(codes, damage, np.stack([np.exp(damage), np.arange(40.0)], axis=1), {})


@pytest.mark.parametrize("learnable", [True, False])
def test_the_surrogate_has_skill_where_damages_add_up_and_none_where_they_are_noise(learnable: bool):
    noise = np.random.default_rng(1)
    history = random_history(lambda bits: np.log(kl_of(bits) + 1e-3) if learnable else noise.normal(-2, 1))
    knobs = [search_dimension(name, "weight_bits", BITS, 32) for name in NAMES]
    surrogate = Surrogate(knobs, ["quality", "measured"], [1, 1], None)
    surrogate.fit(history, np.zeros((0, KNOBS), dtype=int))
    skill = surrogate.skill(history)
    assert skill > 0.6 if learnable else skill < 0.1


def test_a_cost_of_0_counts_as_a_hundredth_of_the_smallest_positive_one() -> None:
    surrogate = Surrogate(OF_ALL_KINDS, ["quality", "measured"], [1, 1], None)
    scaled = surrogate.scaled(np.array([[0.0, 0.0], [0.5, 2.0], [0.25, np.nan]]))
    assert scaled[:, 0].tolist() == [0.0, 0.5, 0.25]
    assert scaled[:2, 1] == pytest.approx([math.log(0.02), math.log(2.0)])
    assert math.isnan(scaled[2, 1])
    assert surrogate.scaled(np.zeros((1, 2)))[0, 1] == pytest.approx(
        math.log(0.02)
    )  # a reference of 0 is on the same scale
