"""Floor 1: what is compressed. Built-in models and data, and the user's own.

`workload` holds what a workload is, `load` finds one by its name, `digits` and `torchvision_models` are the built-in
ones. This package re-exports nothing: importing it must not import torch, so that the command line starts at once.
"""
