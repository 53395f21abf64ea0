"""Every error slimfront raises on purpose.

SlimfrontError                 base: one clear line for a person, never a traceback
├── SearchError                a search cannot go on, or found nothing; the command ends with exit code 1
├── UserError                  the input is wrong; the command ends with exit code 2
│   ├── DocumentError          a YAML or JSON text that cannot be read, is malformed or beyond the limits
│   ├── StudyFileError         a study file, naming the file and the key
│   ├── WorkloadError          a workload that cannot be loaded or breaks its contract
│   ├── TargetError            a target card, or a runtime that is not installed
│   ├── PolicyError            a policy that is malformed or does not fit its model
│   ├── StoreError             a database, study or trial that does not exist or is in use
│   │   └── StoreAwayError     a database that does not answer now, and may in a moment
│   └── ArtifactGoneError      a file of a trial that is no longer kept, or not what it was
├── ArtifactsError             artifacts cannot be kept where they should be; nothing could be kept of any trial
├── WorkerStartError           no worker can start; no trial could run
└── TrialError                 one trial failed; stored as its reason, the search goes on
    ├── CompressionError       the policy could not be applied to the model
    ├── LoweringError          the candidate could not be turned into an artifact
    └── EvaluationError        an evaluator could not produce its number
        └── TimeLimitError     in its time
"""

from .texts import MOST_CHARACTERS, one_line


class SlimfrontError(Exception):
    """Base of all errors raised on purpose."""


class SearchError(SlimfrontError):
    """A search cannot go on, or found nothing; what it did find is stored."""


class UserError(SlimfrontError):
    """The input is wrong; the message says what would be right."""


class DocumentError(UserError):
    """A YAML or JSON text cannot be read, is malformed or beyond the limits; callers add what file it is.

    Args:
        problem: what is wrong.
        line: where, counted from 1; None where it is not known.
    """

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.line = line


class StudyFileError(UserError):
    """A study file is wrong.

    Args:
        file: the study file as the user named it.
        key: dotted path of the offending key, or "" for the file as a whole.
        problem: what is wrong and what would be right.
    """

    def __init__(self, file: object, key: str, problem: str) -> None:
        super().__init__(f"{file}: {key}: {problem}" if key else f"{file}: {problem}")
        self.file, self.key, self.problem = str(file), key, problem


class WorkloadError(UserError):
    """A workload cannot be loaded or breaks its contract."""


class TargetError(UserError):
    """A target card is wrong, or its runtime is not installed."""


class PolicyError(UserError):
    """A policy is malformed or does not fit its model."""


class StoreError(UserError):
    """A database, study or trial does not exist or is in use."""


class StoreAwayError(StoreError):
    """The database does not answer now and may in a moment: its server restarts, or another process has its file locked."""


class ArtifactGoneError(UserError):
    """A file of a trial is no longer kept, or is not what it was."""


class ArtifactsError(SlimfrontError):
    """Artifacts cannot be kept where they should be: it is full, read-only or not there."""


class WorkerStartError(SlimfrontError):
    """No worker can start."""


class TrialError(SlimfrontError):
    """One trial failed; its message is stored as the reason and the search goes on."""


class CompressionError(TrialError):
    """A policy could not be applied to the model."""


class LoweringError(TrialError):
    """A candidate could not be turned into an artifact."""


class EvaluationError(TrialError):
    """An evaluator could not produce its number."""


class TimeLimitError(EvaluationError):
    """An evaluator could not produce its number in its time."""


def describe_exception(error: BaseException, limit: int = MOST_CHARACTERS) -> str:
    """An exception's type and message as one line that any database and terminal takes."""
    try:
        message = str(error)
    except Exception:  # it is of a class of the user's
        message = "(message unavailable)"
    return one_line(f"{type(error).__name__}: {message}" if message else type(error).__name__, limit)
