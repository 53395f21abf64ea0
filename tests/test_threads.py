"""Threads are never more than the cores that a process may use."""

import os

import pytest
import torch
from slimfront.core.threads import torch_threads, usable_threads


def test_a_thread_for_each_core_and_no_more_than_the_share_of_the_machine_carries(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "16")
    assert usable_threads() <= 8
    assert usable_threads([3]) == 1
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # as a container with the time of one core says by its quota
    assert usable_threads() == usable_threads([2, 3]) == 1


def test_torch_has_its_threads_back_whatever_ran_meanwhile():
    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt), torch_threads(before + 1):  # noqa: PT012  (the number inside)
        assert torch.get_num_threads() == before + 1
        torch.set_num_threads(before + 2)
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


def test_this_process():
    assert 1 <= usable_threads() <= len(os.sched_getaffinity(0))
