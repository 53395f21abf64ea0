"""Blocks, channels and single weights removed, and the proof that removing equals masking.

May import `spaces` and what `compression/` shares.
"""
