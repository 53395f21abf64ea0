"""How much disk a search takes that keeps its front's files, next to what it would take with every trial's.

One search with `keep: front` gives both: rows of files that were let go still say how large they were. `python
benchmarks/searching/kept_files.py [STUDY] [--trials N] [--quick] [--json FILE]`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from slimfront.search.events import Event, TrialFinished
from slimfront.search.run import run_search
from slimfront.studies.files.study_files import StudyFiles
from slimfront.studies.store.store import Store
from slimfront.studies.study_file.load import load_study


def kept_bytes(files: StudyFiles) -> int:
    """What the study's artifact store holds."""
    return sum(stored.bytes for stored in files.contents.objects())


def made_bytes(store: Store, study: str) -> int:
    """What all trials together made, equal files once."""
    rows = [row for trial in store.trial_summaries(study) for row in store.artifacts(study, trial.number)]
    return sum({row.key: row.bytes for row in rows}.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", nargs="?", default="digits-demo")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="8 trials")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    trials = 8 if options.quick else options.trials
    spec, found = load_study(options.study).replaced(trials=trials, workers=0), []
    with tempfile.TemporaryDirectory() as folder, Store(f"sqlite:///{folder}/study.db") as store:

        def note(event: Event) -> None:
            if isinstance(event, TrialFinished):
                kept, made = kept_bytes(StudyFiles(store, spec.study)), made_bytes(store, spec.study)
                found.append({"trial": event.trial.number, "keep_front_bytes": kept, "keep_all_bytes": made})

        run_search(spec, store.url, Path(folder, "artifacts"), Console(stderr=True), listeners=[note])
        final = {
            "keep_front_bytes": kept_bytes(StudyFiles(store, spec.study)),
            "keep_all_bytes": made_bytes(store, spec.study),
        }
    table = Table("trials", "keep: front, MB", "keep: all, MB")
    for row in [*found[9::10], {"trial": "end", **final}]:
        table.add_row(str(row["trial"]), f"{row['keep_front_bytes'] / 1e6:.3f}", f"{row['keep_all_bytes'] / 1e6:.3f}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"study": spec.study, "trials": found, "end": final}, indent=2))


if __name__ == "__main__":
    main()
