"""Networks from a grammar: pruned equals masked, exported equals torch, policies survive JSON, and what is counted is what is built."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "generated"))

from grammar import network
from properties import judge

QUANTIZED = 25
"""One network in so many is quantized too, which takes a second."""

COMPILED = 10
"""One network in so many also runs on OpenVINO, which compiles each."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.set_num_threads(threads)


def holding(models: int) -> Callable[[], None]:
    """A test of so many networks, the same ones every time; a failing one is made smaller."""

    @settings(
        max_examples=models,
        derandomize=True,
        deadline=None,  # machines differ
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False), st.integers(0, 2**31))
    def hold(chance: random.Random, seed: int) -> None:
        model, inputs = network(chance)
        runtimes = ("onnxruntime", "openvino") if seed % COMPILED == 0 else ("onnxruntime",)
        judge(model, inputs, random.Random(seed), seed % QUANTIZED == 0, runtimes)

    return hold


def test_every_property_holds_of_a_few_networks() -> None:
    holding(25)()


@pytest.mark.slow
def test_every_property_holds_of_five_hundred_networks() -> None:
    holding(500)()
