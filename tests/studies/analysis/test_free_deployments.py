"""Which free deployment is the reference, and which float precisions pay, by rule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slimfront.core.errors import UserError
from slimfront.core.measurement import Measurement
from slimfront.studies.analysis.free_deployments import choose, is_faster, loses, paying
from slimfront.studies.store.records import FreeDeployment


def deployment(precision: str, speed: float = 1.0, drop: float = 0.0, *, default: bool = False) -> FreeDeployment:
    """One that is so many times as fast as float32, within 2 %, and loses so much, within 0.01."""
    figures = (
        Measurement("speedup_float32", speed, 0.98 * speed, 1.02 * speed, "ratio"),
        Measurement("accuracy_drop", drop, drop - 0.01, drop + 0.01, "fraction"),
    )
    type_ = "bfloat16" if precision == "default" else precision
    return FreeDeployment(precision, type_, default, {figure.name: figure for figure in figures})  # pyright: ignore[reportArgumentType]


PLAIN = deployment("float32")


def chosen(*deployments: FreeDeployment) -> str:
    return choose(deployments, "best")[0].precision


def test_the_fastest_that_loses_nothing_is_the_reference():
    fast = deployment("default", 3.0, default=True)
    assert chosen(fast, PLAIN) == "default"
    assert chosen(deployment("default", 3.0, 0.02, default=True), PLAIN) == "float32", "it loses beyond noise"
    assert chosen(deployment("default", 3.0, 0.009, default=True), PLAIN) == "default", "that is within noise"
    assert chosen(deployment("default", 0.5, default=True), PLAIN) == "float32", "the default is slower"
    assert chosen(fast, PLAIN, deployment("float16", 4.0)) == "float16"
    assert chosen(fast, PLAIN, deployment("float16", 3.05)) == "default", "what runs anyway, within noise"


def test_the_only_deployment_needs_no_figures():
    only = FreeDeployment("float32", "float32", True)
    assert choose([only], "best")[0] is only
    assert paying([only], only) == ("float32",)


def test_the_study_file_may_ask_for_another():
    fast = deployment("default", 3.0, default=True)
    assert choose([fast, PLAIN], "float32")[0] is PLAIN
    assert choose([deployment("default", 0.5, default=True), PLAIN], "default")[0].precision == "default"
    with pytest.raises(UserError, match=r"^the target has no float32 deployment, only default"):
        choose([fast], "float32")


def test_what_cannot_be_measured_is_not_chosen():
    broken = FreeDeployment("float16", "float16", False, problem="its output is not finite")
    assert chosen(deployment("default", 3.0, default=True), PLAIN, broken) == "default"
    assert paying([PLAIN, broken], PLAIN) == ("float32",)


def test_presets_offer_what_pays():
    fast = deployment("default", 3.0, default=True)
    assert paying([fast, PLAIN], fast) == ("default",)
    near = deployment("float16", 2.95)
    assert paying([fast, PLAIN, near], fast) == ("default", "float16")
    slow = deployment("default", 0.5, default=True)
    assert paying([slow, PLAIN], PLAIN) == ("float32", "default"), "the default is not the fastest: it depends"


@given(
    st.lists(st.tuples(st.floats(0.1, 10), st.floats(-0.1, 0.1)), min_size=1, max_size=4),
    st.booleans(),
)
def test_nothing_lossless_is_faster_than_the_reference_beyond_noise(figures, plain_is_default):
    names = ("bfloat16", "float16", "default", "bfloat16")
    others = [deployment(name, *figure) for name, figure in zip(names, figures, strict=False)]
    deployments = [deployment("float32", default=True), *others] if plain_is_default else [*others, PLAIN]
    best, _ = choose(deployments, "best")
    assert not loses(best)
    assert not any(is_faster(each, best) for each in deployments if not loses(each))
    assert paying(deployments, best)[0] == best.precision
