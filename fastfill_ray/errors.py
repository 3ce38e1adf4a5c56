"""One tree of errors, grouped by what the caller does next.

Every message names the thing at fault, what was found, what was expected, and the knob that changes it. All arguments
go to ``Exception.__init__``, so that errors survive pickling on their way back from a Ray worker. A message often holds
text from elsewhere (an exception of S3 or of the embedder, an id, a path): it is sanitised here, once, for all of them.
"""

from __future__ import annotations

from fastfill_ray.sanitize import one_line


class FastfillError(Exception):
    """Base of everything this package raises on purpose; ``exit_code`` is what the commands exit with."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(one_line(arg) if isinstance(arg, str) else arg for arg in args))


class RefusedError(FastfillError):
    """Nothing was started or changed: mend the request, then run again."""

    exit_code = 2


class ConfigError(RefusedError):
    """A key, column or value of the config cannot be used."""


class TooManyRemoved(RefusedError):
    """The gallery lacks more of what is served than may go unseen."""


class SpaceMismatch(RefusedError):
    """Vectors of another model, direction, dimension or metric than the output root is bound to."""


class StoreUnsupported(RefusedError):
    """The store does not do what the commit protocol needs (create-if-absent)."""


class NotPublished(RefusedError):
    """No such version, or none is published yet."""


class InputError(FastfillError):
    """The gallery, the queries or the judgements cannot be used as they are: mend the data."""


class InputChanged(InputError):
    """A pinned input file changed or vanished after planning."""


class UnusableQueries(InputError, ValueError):
    """Vectors of queries that are no vectors of the model: mend them. A ValueError, as of any wrong argument."""


class EmbedderError(FastfillError):
    """The embedder cannot be built, or breaks its contract for every row."""


class QuarantineExceeded(FastfillError):
    """More rows were quarantined than the config allows; nothing of the stage was committed."""


class ClusterError(FastfillError):
    """The Ray cluster cannot be reached, or has no node for what a stage asks for."""


class AlignmentFailed(FastfillError):
    """The alignment could not be fitted on the pairs."""


class StorageError(FastfillError):
    """The store refused or lost an operation: full disk, permission, network.

    Args:
        message: for people.
        paths: under the output root, the objects at fault where the objects themselves are: a run may make them again.
    """

    def __init__(self, message: str, *paths: str) -> None:
        super().__init__(message)
        self.args = (*self.args, *paths)  # as they are: they name objects

    def __str__(self) -> str:
        return str(self.args[0])

    @property
    def paths(self) -> tuple[str, ...]:
        return self.args[1:]


class FileMissing(StorageError):
    """A named object is not in the store."""


class CorruptFile(StorageError):
    """An object's bytes are not the ones that were written: restore it, or let the run rebuild it."""


class CommitStateUnknown(StorageError):
    """It could not be learnt whether a commit landed. Nothing was deleted; run the same command again."""

    exit_code = 74


class Fenced(FastfillError):
    """Another driver has claimed the output root with a higher epoch. Nothing was deleted."""

    exit_code = 75


class DriverAtWork(FastfillError):
    """Another driver is alive on the output root. Nothing was changed."""

    exit_code = 75
