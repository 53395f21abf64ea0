"""Timing on a quiet machine: the paired protocol, the lock, memory, energy.

May import `cards`, `runtimes` and `profiling.fingerprint`.
"""
