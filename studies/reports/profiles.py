"""Device cards in the database: measured, listed, shown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from ...core.errors import TargetError
from ...hardware_profiles.cards.device_card import DeviceCard, Kernel, Throughput
from ...hardware_profiles.cards.target import Target, load_target, shipped_targets
from ...hardware_profiles.profiling.fingerprint import machine
from ...hardware_profiles.runtimes.base import get_runtime, require_installed
from ..store.database import database_url
from ..store.store import Store
from ..terminal import facts, rows_table
from ..wording import moment


def measure_target(reference: str, storage: str, console: Console) -> Target:
    """Profile this machine as a target runs it, and store the card under the target's name.

    Args:
        reference: as `load_target` takes it.

    Raises:
        TargetError: no such card, its runtime is not installed, or it is of another machine.
    """
    from ...hardware_profiles.profiling.profile import profile_target  # imports torch

    target = load_target(reference)
    require_installed(target.runtime)
    if target.remote or target.predict:
        key = "remote" if target.remote else "predict"
        raise TargetError(
            f"target {target.name} is elsewhere: profile it on its own machine, without `{key}:` in its card"
        )
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Store(storage) as store, Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"profiling {target.name}")
        card = profile_target(
            target,
            lambda step, done, total: progress.update(
                task, description=f"profiling {target.name}: {step}", completed=done, total=total
            ),
        )
        measured = target.model_copy(update={"measured": card})
        store.save_target(target.name, measured.model_dump(mode="json"), card.machine)
    return measured


def known_targets(storage: str) -> dict[str, Target]:
    """Name -> target, by name: the shipped ones, and those measured into the database where there is one."""
    templates = {name: load_target(name) for name in shipped_targets()}
    return dict(sorted({**templates, **_stored(storage)}.items()))


def known_target(reference: str, storage: str) -> Target:
    """A target as the database has it where it was measured into that, else as its card says.

    Args:
        reference: as `load_target` takes it.

    Raises:
        TargetError: no such card.
    """
    stored = _stored(storage)
    target = stored.get(reference) or load_target(reference)
    return stored.get(target.name, target)


def profiles_table(targets: Iterable[Target]) -> RenderableType:
    """A row per target."""
    table = rows_table(("target", "runtime", "threads>", "batch>", "measured", "fits this machine"))
    for target in targets:
        card = target.measured
        cells = (moment(card.measured_at), _fit(target, card)) if card else ("not measured", "template")
        table.add_row(target.name, target.runtime, str(target.threads), str(target.batch), *map(Text, cells))
    return table


def profiles_document(targets: Iterable[Target]) -> dict[str, Any]:
    """Targets in short, for other programs: {"targets": [...]}."""
    keys = {"name", "runtime", "threads", "streams", "batch"}
    return {
        "targets": [{**target.model_dump(mode="json", include=keys), **_fit_document(target)} for target in targets]
    }


def target_document(target: Target) -> dict[str, Any]:
    """What is known of a target, for other programs: its card, and whether it fits this machine."""
    return {**target.model_dump(mode="json"), **_fit_document(target)}


def target_report(target: Target) -> RenderableType:
    """What is known of a target."""
    about = [
        ("runtime", target.runtime),
        ("threads", f"{target.threads} in {target.streams} stream" + "s" * (target.streams > 1)),
        ("batch", str(target.batch)),
    ]
    if target.measured is None:
        return Group(Text(target.name, style="bold"), facts([*about, ("measured", "no: the card is a template")]))
    card = target.measured
    about += [
        ("measured", moment(card.measured_at)),
        ("fits this machine", _fit(target, card)),
        (
            "machine",
            f"{card.machine['cpu']}, {card.machine['cores']} cores, governor {card.machine['governor'] or 'unknown'}",
        ),
        ("flags", " ".join(card.machine["flags"]) or "none"),
        *([("memory", f"{card.memory_gb_per_s:.1f} GB/s, copying")] if card.memory_gb_per_s else []),
        ("dispatch", f"{card.dispatch_us:.0f} us a run{_each_operation(card)}"),
        *_table_facts(target),
        *((name, f"{latency:.2f} ms at full precision") for name, latency in card.reference_ms.items()),
        *([("no time for", ", ".join(card.left_out))] if card.left_out else []),
    ]
    return Group(
        Text(target.name, style="bold"),
        facts(about),
        Text("\narithmetic", style="bold"),
        _throughput_table(card.throughput),
        Text("\nkernels", style="bold"),
        _kernel_table(card.kernels),
    )


def _each_operation(card: DeviceCard) -> str:
    return "" if card.operation_us is None else f", {card.operation_us:.2f} us of it for each operation"


def _stored(storage: str) -> dict[str, Target]:
    """Name -> target in the database; none where there is no database yet."""
    url = database_url(storage)
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).exists():
        return {}
    with Store(storage, create=False) as store:
        targets = [Target.model_validate(dict(record.card), strict=False) for record in store.targets()]
    return {target.name: target for target in targets}


def _fit_document(target: Target) -> dict[str, Any]:
    """When a card was measured and whether it fits this machine, with the reason if not; null of a template."""
    if target.measured is None:
        return {"measured_at": None, "fits_this_machine": None, "why_not": None}
    fit = _fit(target, target.measured)
    why_not = None if fit == "yes" else fit.removeprefix("no: ")
    return {
        "measured_at": target.measured.measured_at.isoformat(),
        "fits_this_machine": why_not is None,
        "why_not": why_not,
    }


def _table_facts(target: Target) -> list[tuple[str, str]]:
    """The error of the card's latency table; nothing without one."""
    if (table := target.latency_table) is None:
        return []
    quality = f"median error {table.error:.1%}, 95th percentile {table.error_95:.1%}"
    return [("latency table", f"{len(table.model)} layers, fitted to {table.policies} policies; {quality}")]


def _fit(target: Target, card: DeviceCard) -> str:
    try:
        runtime = get_runtime(target.runtime)
    except TargetError as reason:
        return f"no: {reason}"
    return ((misfit := card.misfit(machine(), runtime.name, runtime.version())) and f"no: {misfit}") or "yes"


def _throughput_table(reached: Iterable[Throughput]) -> RenderableType:
    rows = [
        (
            r.operation,
            f"{r.weight_bits}/{r.activation_bits}",
            f"{r.gmac_per_s:.1f}" + "~" * r.noisy,
            f"{r.low:.1f} to {r.high:.1f}",
        )
        for r in reached
    ]
    return rows_table(("operation", "bits", "GMAC/s>", "95 % interval>"), rows)


def _kernel_table(kernels: Iterable[Kernel]) -> RenderableType:
    """A row per operation and executed precision, with the bits that end in it."""
    ends: dict[tuple[str, str, bool], list[str]] = {}
    for kernel in kernels:
        key = kernel.operation, kernel.executed or "not reported", kernel.storage_only
        ends.setdefault(key, []).append(f"{kernel.weight_bits}/{kernel.activation_bits}")
    rows = [
        (operation, executed + " (storage only)" * storage_only, " ".join(bits))
        for (operation, executed, storage_only), bits in ends.items()
    ]
    return rows_table(("operation", "runs in", "weight/activation bits"), rows)
