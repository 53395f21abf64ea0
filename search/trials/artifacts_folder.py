"""Whether the artifacts folder takes what trials write; where it does not, no policy is at fault."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...core.defaults import DEFAULT_ARTIFACTS
from ...core.errors import ArtifactsError, SlimfrontError
from ...core.interrupts import raise_if_interrupted
from ...hardware_profiles.runtimes.base import Artifact
from ...studies.artifacts.folder_store import free_bytes
from ...studies.artifacts.open_store import is_url, new_prefix, open_artifact_store, work_folder
from ...studies.store.database import is_there
from ...studies.store.store import Store
from ...studies.study_file.spec import Keep, StudySpec

PROBE_BYTES = 2**16
"""Written to find out whether anything can be; a worker tries as much as the uncompressed model takes."""

FILES_OF_A_TRIAL = 3
"""Artifact, weights and packed weights."""

SPARE_BYTES = 2**20
"""Left for the database, which usually lies on the same disk."""

_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_NO_SPACE = (os.strerror(errno.ENOSPC), "os error 28")


def artifacts_root(spec: StudySpec, given: Path | str | None, url: str) -> str:
    """The absolute folder or the URL that a study's artifacts are to lie in.

    That is what the user gave, or what the study file names, or where the study has its artifacts by now, or else the folder for
    all that name none, in the current one.

    Args:
        url: of the study's database, which need not be there yet.
    """
    if given is not None:
        return str(given) if is_url(str(given)) else str(Path(given).resolve())
    if spec.artifacts is not None:
        return spec.artifacts if is_url(spec.artifacts) else str((spec.base_folder / spec.artifacts).resolve())
    recorded = None
    if is_there(url):
        with Store(url, create=False) as store:
            recorded = store.artifact_place(spec.study) if store.has_study(spec.study) else None
    return str(DEFAULT_ARTIFACTS.resolve()) if recorded is None else recorded.root


def require_writable(root: str, study: str) -> Path:
    """See that a study's files can be written, before anything is measured; the local folder of its logs and files at work.

    Raises:
        ArtifactsError: they cannot.
        UserError: a URL that cannot be used.
    """
    prefix = new_prefix(study)
    folder = work_folder(root, prefix)
    if (problem := why_unwritable(folder)) is not None:
        raise ArtifactsError(unwritable(folder, problem))
    if is_url(root):
        open_artifact_store(root, prefix).require_writable()
    return folder


def unwritable(folder: Path, problem: str) -> str:
    """The line for a user."""
    return f"{folder}: artifacts cannot be written here: {problem}; make room, or choose another folder of artifacts"


def storage_problem(folder: Path, error: BaseException, size: int = PROBE_BYTES) -> str | None:
    """What is wrong with the folder where that is why a trial failed; None where it failed for reasons of its own.

    Libraries hide what the system said, and some say nothing at all: the folder itself is tried.
    """
    if isinstance(error, OSError) and error.errno in _STORAGE:
        return os.strerror(error.errno)
    if any(text in str(error) for text in _NO_SPACE):
        return _NO_SPACE[0]
    return why_unwritable(folder, size)


def why_unwritable(folder: Path, size: int = PROBE_BYTES) -> str | None:
    """Why no file of `size` bytes can be written in `folder`, which is made; None where one can."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        _remove(probe)
    return None


def _remove(probe: Path) -> None:
    with suppress(OSError):  # it was never created; the caller reports why
        probe.unlink()


@dataclass(frozen=True)
class DiskSpace:
    """Whether the disk that trials make their files on takes another trial.

    Attributes:
        folder: of files at work, on the same disk as the artifact store where that is a folder.
        trial_bytes: what a trial's files take at most: artifact, weights and packed weights, each taken to be as large as the
            uncompressed model's artifact.
    """

    folder: Path
    trial_bytes: int

    @classmethod
    def of(cls, folder: Path, reference: Artifact) -> DiskSpace:
        """Judge trials by the artifact of the uncompressed model."""
        return cls(folder, FILES_OF_A_TRIAL * reference.bytes)

    def problem(self, running: int) -> str | None:
        """Why no trial is to begin next to those that run; None where one may."""
        free, needed = free_bytes(self.folder), (running + 1) * self.trial_bytes + SPARE_BYTES
        if free >= needed:
            return None
        return (
            f"the disk of {self.folder} is nearly full: {_size(free)} are free, and another trial may need "
            f"{_size(needed)}; make room, and the same command continues"
        )

    def forecast(self, keep: Keep, trials: int | None, teacher_bytes: int = 0) -> str:
        """What a search will need on disk, in words.

        Args:
            teacher_bytes: the most that stored outputs of the teacher take.
        """
        kept = {"front": "the trials on the front", "none": "none in the end"}.get(keep, "all trials")
        most = f", at most {_size(trials * self.trial_bytes)} for {trials} trials" if keep == "all" and trials else ""
        teacher = f"the teacher's outputs take up to {_size(teacher_bytes)}; " if teacher_bytes else ""
        return (
            f"disk: files of a trial take up to {_size(self.trial_bytes)}, kept are those of {kept}{most}; {teacher}"
            f"{_size(free_bytes(self.folder))} are free"
        )


def _size(count: float) -> str:
    """Bytes in the unit that suits them."""
    unit, by = next(((unit, by) for unit, by in (("GB", 1e9), ("MB", 1e6)) if count >= by), ("kB", 1e3))
    return f"{count / by:,.1f} {unit}"


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Say in one line where an exception comes of a folder that cannot be written to.

    Raises:
        ArtifactsError: of one that the block raised.
    """
    try:
        yield
    except SlimfrontError:
        raise
    except Exception as error:  # libraries that write files raise what they like
        raise_if_interrupted(error)
        if (problem := storage_problem(folder, error)) is not None:
            raise ArtifactsError(unwritable(folder, problem)) from error
        raise
