"""Ctrl-C that Python dropped is raised again, and waits for what must be done whole."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from slimfront.core.errors import CompressionError, describe_exception
from slimfront.core.interrupts import ENDING, Interrupts, ending_interrupts, raise_if_interrupted, uninterrupted
from slimfront.spaces.models.channel_graph import ChannelGraph
from torch import Tensor, nn, zeros


def interrupt() -> None:
    """Interrupt this process and wait until that arrives, which takes longer on a busy machine."""
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)


class InterruptedWhileDestroyed:
    """Python prints what a destructor raises, and goes on."""

    def __del__(self) -> None:
        interrupt()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_a_destructor_is_not_lost() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        interrupts.check()
        InterruptedWhileDestroyed()  # no KeyboardInterrupt comes out of this
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_elsewhere_is_raised_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        interrupt()


def test_an_interrupt_waits_for_the_end_of_what_must_be_done_whole() -> None:
    done = []

    @uninterrupted()
    def inner() -> None:
        signal.raise_signal(signal.SIGINT)
        done.append("inner")

    @uninterrupted()
    def outer() -> None:
        inner()
        done.append("outer")

    with Interrupts(), pytest.raises(KeyboardInterrupt):
        outer()
    assert done == ["inner", "outer"]


def test_a_second_interrupt_goes_through_at_once() -> None:
    done = []

    @uninterrupted()
    def impatient() -> None:
        for press in ("first", "second"):
            signal.raise_signal(signal.SIGINT)
            done.append(press)

    with pytest.raises(KeyboardInterrupt):
        impatient()
    assert done == ["first"]


def test_the_interrupt_goes_to_the_handler_that_was_there_before() -> None:
    """A program that searches may have one of its own, which raises nothing."""
    received = []

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert not received
        assert received == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def _swallowed(interrupt: Callable[[], None]) -> Exception:
    """What a library makes of an interrupt in a bare except."""
    try:
        try:
            interrupt()
        except BaseException:
            raise TypeError("called it wrongly")  # noqa: B904
    except TypeError as error:
        return error
    raise AssertionError("nothing interrupted")


def _raise() -> None:
    raise KeyboardInterrupt


def test_an_interrupt_that_a_library_made_something_else_of_is_one_again() -> None:
    with Interrupts():
        error = _swallowed(lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            raise_if_interrupted(error)


def test_an_interrupt_that_nobody_pressed_is_an_exception_like_any_other() -> None:
    with Interrupts():
        raise_if_interrupted(_swallowed(_raise))
    raise_if_interrupted(ValueError("no interrupt at all"))


def test_an_error_that_leaves_after_an_interrupt_is_the_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        raise _swallowed(lambda: signal.raise_signal(signal.SIGINT))


class _Interrupted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return x


class _Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("the model's own words")


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_while_channels_are_followed_is_no_failure_of_the_model() -> None:
    with pytest.raises(KeyboardInterrupt):
        ChannelGraph(_Interrupted(), zeros(1, 3))
    with pytest.raises(CompressionError, match=r"^Torch-Pruning failed: the model's own words$"):
        ChannelGraph(_Failing(), zeros(1, 3))


@uninterrupted()
def _ended_while_busy(number: int, done: list[str]) -> None:
    signal.raise_signal(number)
    done.append("held back until here")


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_signals_to_end_do_what_ctrl_c_does_also_in_the_background(ctrl_c: Any, number: signal.Signals) -> None:
    """Shells start background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, ctrl_c)
    was = signal.signal(number, signal.SIG_DFL)  # tests that started Ray in this process have left a handler
    done: list[str] = []
    try:
        with ending_interrupts():
            with pytest.raises(KeyboardInterrupt):
                _ended_while_busy(number, done)
            with pytest.raises(KeyboardInterrupt), Interrupts():
                signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)
        with ending_interrupts():
            signal.raise_signal(number)  # nohup: the search goes on
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(number, was)
    assert done == ["held back until here"]


def test_an_exceptions_text_is_data() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe_exception(Mute()) == "Mute: (message unavailable)"
    assert (
        describe_exception(ValueError("a\udc80\x00\x1b[31m\n  b\u202e :x:"))
        == r"ValueError: a\udc80\x00\x1b[31m b\u202e :x:"
    )
    assert len(describe_exception(ValueError("\x00" * 10**6))) == 2000
    assert describe_exception(GeneratorExit()) == "GeneratorExit"
