"""Every error a user can cause or meet, with the exit code the command line gives for it, and the one warning."""

from __future__ import annotations


class PrunecompError(Exception):
    """Base of all errors raised on purpose; its message says what is wrong and what would be right."""

    exit_code = 1


class OptionError(PrunecompError):
    """An option or argument that cannot be meant as given."""

    exit_code = 2


class CheckpointError(PrunecompError):
    """A model that cannot be read: missing, truncated, refused or of an unknown family."""

    exit_code = 3


class DataError(PrunecompError):
    """Calibration or evaluation data that cannot be used."""

    exit_code = 4


class NumericalError(PrunecompError):
    """A value that is not finite, in the weights or in the activations."""

    exit_code = 5


class FoldError(PrunecompError):
    """A compensation that cannot be folded into the weights exactly."""

    exit_code = 6


class OutputError(PrunecompError):
    """A result that cannot be written."""

    exit_code = 7


class BackendError(PrunecompError):
    """A back end that was asked for by name and cannot run here."""

    exit_code = 2


class DistributedError(PrunecompError):
    """A run of several processes that cannot start or go on."""

    exit_code = 8


class JournalError(PrunecompError):
    """A journal that belongs to another run, or cannot be used."""

    exit_code = 9


class TargetError(PrunecompError):
    """A target that cannot be met: it says how far the run came."""

    exit_code = 10


class PrunecompWarning(UserWarning):
    """Something of the model that does not outlive a removal was left out of what is written."""
