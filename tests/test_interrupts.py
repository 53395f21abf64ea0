"""Ctrl-C that Python dropped is raised again, and waits for what must be done whole."""

import os
import signal
import time
from types import FrameType

import pytest
from slimfront.interrupts import Interrupts, uninterrupted


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


def test_the_interrupt_goes_to_whoever_had_it_before() -> None:
    """Ray Tune has a handler of its own, which raises nothing."""
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
