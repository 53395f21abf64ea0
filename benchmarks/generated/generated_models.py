"""Random networks from a grammar, each held against all properties of `properties`.

    python benchmarks/generated/generated_models.py --models 5000

Prints how many groups of channels were refused and why, by kind, and every network of which a property does not hold, by its seed; the
exit code is then 1. The same seed makes the same network.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence

import torch
from grammar import network
from properties import Found, Wrong, judge

QUANTIZED = 10
"""One network in so many is quantized too."""


def judged(seed: int, runtimes: Sequence[str], quantized: int) -> Found:
    chance = random.Random(seed)
    model, inputs = network(chance)
    return judge(model, inputs, chance, seed % quantized == 0, runtimes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first one")
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime", "openvino"], help="on which artifacts run")
    parser.add_argument("--quantized", type=int, default=QUANTIZED, help="one in so many is quantized")
    parser.add_argument("--show", type=int, default=10, help="tracebacks to print")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    begun, wrong, failed = time.monotonic(), Counter(), 0
    groups, lost, models, refused, not_lowered = 0, 0, 0, Counter(), Counter()
    for seed in range(options.seed, options.seed + options.models):
        if time.monotonic() - begun > options.seconds:
            break
        models += 1
        try:
            found = judged(seed, options.runtimes, options.quantized)
        except Exception as error:  # of whatever kind, it is what this looks for
            failed += 1
            wrong[f"{type(error).__name__}: {error}"[:100]] += 1
            if failed <= options.show:
                detail = (
                    f"seed {seed}: {error}"
                    if isinstance(error, Wrong)
                    else f"seed {seed}: {traceback.format_exc()[-900:]}"
                )
                print(detail, file=sys.stderr, flush=True)
            continue
        groups, lost = groups + found.groups, lost + found.lost
        refused.update(found.refused)
        not_lowered.update(found.not_lowered)
    print(
        f"{models:,} models in {time.monotonic() - begun:.0f} s: {groups:,} groups proven, of which {lost:,} lost channels; "
        f"{refused.total():,} refused; {not_lowered.total():,} models not lowered; {failed:,} wrong"
    )
    for title, counts in (("refused", refused), ("not lowered", not_lowered), ("WRONG", wrong)):
        for reason, count in counts.most_common(25):
            print(f"{title} {count:6,}  {reason}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
