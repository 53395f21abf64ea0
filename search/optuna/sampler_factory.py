"""The sampler that a study file names."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler

from ...studies.study_file.spec import StudySpec
from ...workloads.metrics import quality_of
from ..sampler.designer import TransferredTrial
from ..sampler.study_terms import KnownDamage, cost_of, learned_dimensions, role_of, space_dimensions, worst_corner
from ..sampler.untried import Untried
from ..trials.prepared_study import PreparedStudy
from .policy_sampler import PolicySampler
from .untried_sampler import UntriedSampler


def make_sampler(
    prepared: PreparedStudy,
    baseline: Mapping[str, float],
    trials_so_far: int,
    transferred: Sequence[TransferredTrial] = (),
    known: KnownDamage | None = None,
    untried: Untried | None = None,
) -> BaseSampler:
    """The study's sampler. Its seed depends on how far the study is: the same one would propose the same trials again.

    Args:
        baseline: metric -> value of the uncompressed model.
        transferred: trials of other studies; only the policy sampler learns from them.
        known: damage of single choices, which it starts from.
        untried: says what may be proposed; without, any policy may.
    """
    spec = prepared.spec
    digest = hashlib.sha256(f"{spec.seed}/{trials_so_far}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    sampler = _plain_sampler(spec, seed) or _policy_sampler(prepared, baseline, transferred, known, untried, seed)
    if untried is None:
        return sampler
    learns = not isinstance(sampler, PolicySampler)
    return UntriedSampler(sampler, space_dimensions(prepared.space), untried, seed, learns_failures=learns)


def _plain_sampler(spec: StudySpec, seed: int) -> BaseSampler | None:
    """Optuna's own sampler that a study names; None where it names the policy sampler."""
    if spec.sampler == "nsgaii":
        return NSGAIISampler(seed=seed, population_size=20)
    if spec.sampler == "random":
        return RandomSampler(seed=seed)
    if spec.sampler == "tpe":
        return TPESampler(seed=seed, multivariate=True, constant_liar=spec.workers not in (0, 1), n_startup_trials=10)
    return None


def _policy_sampler(
    prepared: PreparedStudy,
    baseline: Mapping[str, float],
    transferred: Sequence[TransferredTrial],
    known: KnownDamage | None,
    untried: Untried | None,
    seed: int,
) -> PolicySampler:
    spec, cost = prepared.spec, cost_of(prepared)
    quality = quality_of(prepared.context.workload.metric, baseline["accuracy"])
    # Optuna reads the dashboard's list, in which a trial that was stopped has one more, as constraints named by their place.
    copied = map(str, range(len(spec.constraints) + 1))
    return PolicySampler(
        [role_of(name, cost.is_exact) for name in spec.objectives],
        dimensions=learned_dimensions(prepared, known),
        counted=cost,
        keys=cost.keys if cost.is_exact else None,
        reference=worst_corner(baseline, spec.objectives, spec.constraints, quality),
        implied=frozenset({*copied, *(str(c) for c in spec.constraints if c.metric in spec.objectives)}),
        transferred=transferred,
        may_propose=untried.__contains__ if untried is not None else lambda _: True,
        seed=seed,
    )
