"""The PT2 archive that torch's runtimes load: a model, and the notes of its lowering."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.export.pt2_archive._package import PT2ArchiveContents, load_pt2

from ....core.batch import Batch
from ....core.errors import LoweringError

if TYPE_CHECKING:
    pass

NOTES = "slimfront.json"
"""The archive's file with the results of `signature` and `executed_precisions`."""


@dataclass(frozen=True)
class Archive:
    """A loaded archive: the model, and the notes of its lowering."""

    model: Callable[[Batch], Batch]
    notes: dict[str, Any]


def open_archive(artifact: Path) -> Archive:
    """The archive at `artifact`.

    Raises:
        LoweringError: torch cannot load it.
    """
    import torch.ao.quantization.fx._decomposed  # noqa: F401  # registers the operations of grids

    try:
        contents = load_pt2(str(artifact), run_single_threaded=True)
        return Archive(_runnable(contents), json.loads(contents.extra_files[NOTES]))
    except (RuntimeError, ValueError, KeyError, OSError, AssertionError) as error:
        raise LoweringError(f"torch refuses {artifact.name}: {(str(error) or repr(error)).splitlines()[0]}") from error


def _runnable(contents: PT2ArchiveContents) -> Callable[[Batch], Batch]:
    if contents.aoti_runners:
        return contents.aoti_runners["model"]
    return contents.exported_programs["model"].module(check_guards=False)
