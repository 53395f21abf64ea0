"""An interrupt that Python dropped is raised again."""

import os
import signal
import time

import pytest
from slimfront.search.interrupts import Interrupts


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
