"""How much one choice damages the model alone: one knob changed at a time, the rest of the model whole.

The damage is how far outputs are from the uncompressed model's on a part of the search-validation split: the KL divergence of class
probabilities (Dong et al. 2020, HAWQ-V2, arXiv:1911.03852, add up such single damages; the KL is that of Cai et al. 2020, ZeroQ,
arXiv:2001.00281), one over the signal-to-noise ratio of values, or the weighted mean over several outputs. Bits are simulated in float, without recovery and without an artifact. Of each knob one choice is
measured: its other choices are guessed from it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue

import numpy as np
import torch
from torch import nn

from ..compression.pruning.prune import is_structurally_changed, pruned_copy, reestimate_batch_norm
from ..compression.quantization.fake_quantize import fake_quantized
from ..compression.recovery.outputs import output_kinds
from ..core.batch import Batch, device_of, moved, stacked
from ..core.interrupts import raise_if_interrupted
from ..core.measurement import Measurement
from ..evaluators.accuracy import mean_of
from ..spaces.knobs.kind import Knob
from ..spaces.knobs.registry import KNOB_KINDS
from ..spaces.policies.layer_policy import FULL_PRECISION
from ..spaces.policies.policy import Choice, Policy
from ..spaces.policies.resolved import effective_policy
from ..spaces.space import Space
from ..studies.store.records import SIMULATED, SensitivityRecord
from ..studies.store.store import Store
from ..workloads.workload import describe
from .events import Event, Listener, SensitivityMeasured, SensitivityUnmeasured
from .sampler.dimensions import guessed_damage
from .transfer import earlier_sensitivities
from .trials.prepared_study import PreparedStudy

SAMPLES = 64
"""Of the search-validation split, evenly spread over it."""

MOST_DAMAGE = 0.3
"""The choice measured is the one guessed to do most damage below this, in nats or as much of 1/SNR: more than noise, and not yet broken.
`benchmarks/searching/sensitivity_choice.py`: any two of its tasks choose it for the third."""


STOP_SECONDS = 10.0
"""How long a search that ends waits for the probe that its thread is at."""

_SHARE_IS_SPENT = "a tenth of the time budget is spent on it"

LEAST_TRIALS = 24
"""Below so many the anchors are half the budget or more, and there is little left to save."""


@dataclass(frozen=True)
class Probe:
    """A policy in which a single knob is not as near to neutral as it can be."""

    knob: Knob
    choice: Choice
    policy: Policy


def probes(space: Space, limit: float = MOST_DAMAGE) -> list[Probe]:
    """One per knob that does damage alone: of the choice guessed to do most damage below `limit`, in nats."""
    base = space.parameters(space.uniform({}))
    found = []
    for knob in space.knobs:
        offered = [choice for choice in knob.choices if choice not in (KNOB_KINDS[knob.kind].neutral, base[knob.name])]
        if KNOB_KINDS[knob.kind].is_damaging and offered:
            choice = _chosen(knob, offered, limit)
            found.append(Probe(knob, choice, space.policy({**base, knob.name: choice})))
    return found


def measured(
    prepared: PreparedStudy, wanted: Sequence[Probe], tell: Listener = lambda _: None
) -> Iterator[SensitivityRecord]:
    """Measure probe by probe; one that fails is left out.

    The first one's seconds include the calibration.

    Args:
        tell: is called with what cannot be measured, and why.
    """
    started = time.monotonic()
    try:
        simulation = Simulation(prepared)
    except Exception as error:  # the user's model may raise anything
        raise_if_interrupted(error)
        tell(SensitivityUnmeasured(f"no choice can be measured alone: {describe(error)}"))
        return
    for probe in wanted:
        try:
            divergence = simulation.divergence(probe.policy)
        except Exception as error:  # as above, or the policy does not fit it; trials of other policies may be fine
            raise_if_interrupted(error)
            tell(
                SensitivityUnmeasured(f"{probe.knob.name} = {probe.choice} cannot be measured alone: {describe(error)}")
            )
            continue
        ended = time.monotonic()
        yield SensitivityRecord(probe.knob.name, probe.choice, probe.policy.digest, divergence, ended - started)
        started = ended


class Sensitivity:
    """The damage of single choices in a study: as stored, as another study of the workload found, or measured here.

    Every damage is stored as soon as it is known, so that a run which is stopped loses none; the next one measures the rest.

    Args:
        seconds: that this run may spend on it; what it leaves out is reported.
        tell: is called with each choice that is measured, and with those that cannot be.

    Attributes:
        records: what is known so far.
        has_started: whether this run has begun to measure.
    """

    def __init__(
        self,
        store: Store,
        prepared: PreparedStudy,
        seconds: float = math.inf,
        tell: Listener = lambda _: None,
    ) -> None:
        self._store, self._prepared, self._seconds, self._tell = store, prepared, seconds, tell
        self.records = store.sensitivities(prepared.spec.study) if prepared.spec.sensitivity else []
        self._wanted = probes(prepared.space) if prepared.spec.sensitivity and why_not(prepared) is None else []
        self._take_over()
        self.has_started = False
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()
        self._failure: Exception | None = None

    @property
    def missing(self) -> list[Probe]:
        """Choices whose damage is not known."""
        known = {record.digest for record in self.records}
        return [probe for probe in self._wanted if probe.policy.digest not in known]

    def measure(self) -> None:
        """Measure what is missing, as far as the seconds go."""
        self.has_started = True
        self._measure(self._tell)

    def _measure(self, tell: Listener) -> None:
        started, total, missing = time.monotonic(), len(self._wanted), self.missing
        for record in measured(self._prepared, missing, tell) if missing else ():
            self._keep([record])
            tell(SensitivityMeasured(len(self.records), total))
            if self._stopped.is_set():
                return
            if time.monotonic() - started > self._seconds and (left := len(self.missing)):
                tell(SensitivityUnmeasured(f"{left} of {total} choices are not measured alone: {_SHARE_IS_SPENT}"))
                return

    def start(self, cores: Sequence[int]) -> None:
        """Measure what is missing in a thread on these cores, while workers run the first trials."""
        self.has_started = True
        self._thread = threading.Thread(target=self._run, args=(list(cores),), name="sensitivity", daemon=True)
        self._thread.start()

    def is_running(self) -> bool:
        """Whether the thread is at work. Passes its events so far to the listener.

        Raises:
            StoreError: it ended because the database could not be written.
        """
        while not self._events.empty():
            self._tell(self._events.get())
        if self._failure is not None:
            raise self._failure
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End the thread after the probe that it is at, waiting for that a few seconds."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def _run(self, cores: list[int]) -> None:
        os.sched_setaffinity(0, cores)  # of this thread alone: the bench has the others
        torch.set_num_threads(1)  # workers compute on these cores, where two of one operation would spin for each other
        try:
            self._measure(self._events.put)
        except Exception as error:  # raised again where the driver looks
            self._failure = error

    def _keep(self, records: Sequence[SensitivityRecord]) -> None:
        self._store.add_sensitivities(self._prepared.spec.study, records)
        self.records = [*self.records, *records]

    def _take_over(self) -> None:
        """Keep what another study of the same workload measured already, on as many samples."""
        missing = self.missing if self._prepared.spec.transfer else []
        if not missing:
            return
        samples = min(SAMPLES, len(self._prepared.context.workload.validation))
        earlier = earlier_sensitivities(self._store, self._prepared.spec)
        found = {probe: earlier.get((probe.policy.digest, samples)) for probe in missing}
        known = [replace(r, knob=p.knob.name, choice=p.choice) for p, r in found.items() if r is not None]
        if known:
            self._keep(known)


def why_not(prepared: PreparedStudy) -> str | None:
    """Why no sensitivity can be measured here; None where it can."""
    trials = prepared.spec.budget.trials
    if trials is not None and trials < LEAST_TRIALS:
        return f"a budget below {LEAST_TRIALS} trials is mostly anchors"
    return None if probes(prepared.space) else "no knob does damage alone"


def known_damage(space: Space, records: Sequence[SensitivityRecord]) -> dict[str, dict[Choice, float]]:
    """Knob -> choice -> damage, beyond what a space without the uncompressed model does at its mildest."""
    least = min((record.kl.value for record in records), default=0.0)
    base = 0.0 if space.uniform({}).is_free else least
    found: dict[str, dict[Choice, float]] = {}
    for record in records:
        found.setdefault(record.knob, {})[record.choice] = max(record.kl.value - base, 0.0)
    return found


class Simulation:
    """The workload's model under a policy, in float: what is removed is removed, bits are rounding."""

    def __init__(self, prepared: PreparedStudy) -> None:
        self._prepared, workload = prepared, prepared.context.workload
        count = min(SAMPLES, len(workload.validation))
        chosen = np.linspace(0, len(workload.validation) - 1, count).round().astype(int)
        samples = stacked([workload.validation[int(index)][0] for index in chosen])
        self._inputs = moved(samples, device_of(workload.example_input))
        self._kinds = output_kinds(workload)
        # Only here: it imports torchao, which takes two seconds.
        from ..compression.quantization.calibrate import input_grids

        self._reference = self._outputs(workload.model.eval())
        widths = [int(bits) for bits in prepared.space.choices["activation_bits"] if int(bits) < FULL_PRECISION // 2]
        names = [layer.name for layer in prepared.space.layers if layer.is_product]
        self._grids = input_grids(workload.model, names, widths, workload.calibration, prepared.space.scheme)

    def divergence(self, policy: Policy) -> Measurement:
        """Distance from the uncompressed outputs.

        Raises:
            CompressionError: the policy does not fit the model.
        """
        workload, groups = self._prepared.context.workload, self._prepared.groups
        model = pruned_copy(workload.model, workload.example_input, policy, groups, workload, self._prepared.spec.seed)
        if is_structurally_changed(policy, groups):
            reestimate_batch_norm(model, workload.calibration)
        policy = effective_policy(policy)
        grids = {
            name: self._grids[name, layer.activation_bits]
            for name, layer in policy.layers.items()
            if (name, layer.activation_bits) in self._grids
        }
        with fake_quantized(model, policy, grids):
            damage = self._kinds.damage(self._outputs(model), self._reference)
        return replace(mean_of("kl", damage), method=SIMULATED)

    @torch.no_grad()
    def _outputs(self, model: nn.Module) -> Batch:
        return model(self._inputs)


def _chosen(knob: Knob, offered: Sequence[Choice], limit: float) -> Choice:
    guesses: Mapping[Choice, float] = guessed_damage(knob.kind, knob.choices, KNOB_KINDS[knob.kind].neutral)
    mild = [choice for choice in offered if guesses[choice] < limit]
    return max(mild, key=lambda choice: guesses[choice]) if mild else min(offered, key=lambda c: guesses[c])
