"""The proxy audit: how well counts that are used as proxies of speed rank a study's trials by measured latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core.errors import UserError
from ...core.metrics import METRICS
from ...core.statistics import rank_correlation_interval
from ..store.records import TrialRecord
from .front import Objective, Point, pareto_front

LATENCY = "latency_ms"
FEWEST = 4
"""The fewest trials of which a rank correlation is reported."""


@dataclass(frozen=True)
class Misled:
    """A point that a proxy puts on its front, and a trial that is measured faster at no loss of accuracy.

    Attributes:
        trial: on the front of (accuracy_drop, proxy).
        faster: its accuracy_drop is no higher, and its latency lower by more than the noise.
        proxy_ratio: proxy of `faster` / proxy of `trial`, at least 1: the proxy sees no gain, or has it the other way round.
        latency_ratio: latency of `trial` / latency of `faster`, above 1.
    """

    trial: int
    faster: int
    proxy_ratio: float
    latency_ratio: float


@dataclass(frozen=True)
class ProxyAudit:
    """How one proxy ranks trials.

    Attributes:
        n: trials with both numbers.
        spearman, low, high: rank correlation with latency and its 95 % interval (Bonett & Wright 2000, Psychometrika
            65:23); NaN where the proxy is the same for all trials.
        kendall: tau-b.
        misled: the point best by the proxy among those that measured latency beats; None where it beats none.
    """

    proxy: str
    n: int
    spearman: float
    low: float
    high: float
    kendall: float
    misled: Misled | None


def audit(trials: Sequence[TrialRecord]) -> list[ProxyAudit]:
    """One audit per proxy that was measured, over all trials that were timed, infeasible ones too; a predicted latency
    is itself computed from such counts, and says nothing of them.

    Raises:
        UserError: too few trials were timed.
    """
    timed = [
        trial for trial in trials if LATENCY in trial.measurements and not trial.measurements[LATENCY].is_predicted
    ]
    if len(timed) < FEWEST:
        raise UserError(f"{len(timed)} trials have a measured latency; an audit needs at least {FEWEST}")
    audits = (_audit(proxy, [trial for trial in timed if proxy in trial.measurements]) for proxy in METRICS.counts)
    return [found for found in audits if found.n >= FEWEST]


def _audit(proxy: str, trials: Sequence[TrialRecord]) -> ProxyAudit:
    counts = [trial.measurements[proxy].value for trial in trials]
    latencies = [trial.measurements[LATENCY].value for trial in trials]
    n = len(trials)
    if len(set(counts)) < 2 or len(set(latencies)) < 2:
        return ProxyAudit(proxy, n, math.nan, math.nan, math.nan, math.nan, None)
    from scipy.stats import kendalltau, spearmanr  # only here: importing it takes a second

    # Both results are named tuples of statistic and p-value, which SciPy does not annotate.
    spearman, kendall = (float(np.asarray(rank(counts, latencies))[0]) for rank in (spearmanr, kendalltau))
    return ProxyAudit(proxy, n, spearman, *rank_correlation_interval(spearman, n), kendall, _misled(proxy, trials))


def _misled(proxy: str, trials: Sequence[TrialRecord]) -> Misled | None:
    scored = {t.number: t for t in trials if t.state == "complete" and "accuracy_drop" in t.measurements}
    by_proxy = [Objective.of("accuracy_drop"), Objective.of(proxy)]
    front = pareto_front([Point.of(trial, by_proxy) for trial in scored.values()], by_proxy)
    for point in sorted(front, key=lambda point: point.values[1]):
        slow = scored[point.trial]
        faster = [trial for trial in scored.values() if _is_faster(trial, slow)]
        if faster:
            best = min(faster, key=lambda trial: trial.measurements[LATENCY].value)
            return Misled(slow.number, best.number, _ratio(best, slow, proxy), _ratio(slow, best, LATENCY))
    return None


def _is_faster(trial: TrialRecord, than: TrialRecord) -> bool:
    ours, theirs = trial.measurements, than.measurements
    return ours[LATENCY].high < theirs[LATENCY].low and ours["accuracy_drop"].value <= theirs["accuracy_drop"].value


def _ratio(above: TrialRecord, below: TrialRecord, name: str) -> float:
    return above.measurements[name].value / below.measurements[name].value
