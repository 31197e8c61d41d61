"""Errors of the package: each names the culprit and says what to do about it.

Every error derives from :class:`FinetuneError`, and also from the built-in error that a caller
would expect (``ValueError``, ``FileNotFoundError``, ...), so ``except ValueError`` keeps working.
"""

from __future__ import annotations


class FinetuneError(Exception):
    """Base class of all errors raised on purpose by ase_finetune."""


class InputError(FinetuneError, ValueError):
    """An argument, a structure or a setting that cannot be used; the message names it."""


class DataError(InputError):
    """Labelled frames that cannot be trained on as they are."""


class UnknownModelError(InputError):
    """A model name that no backend knows and no file carries."""


class ModelNotAvailableError(FinetuneError, FileNotFoundError):
    """A known pretrained model whose file is not here and could not be downloaded."""


class BackendNotInstalledError(FinetuneError, ImportError):
    """The package behind a model (sevenn, mace-torch) is missing or does not import."""


class CheckpointError(FinetuneError, ValueError):
    """A model or Fisher file that is corrupt, foreign or of another model."""


class UntrustedFileError(CheckpointError):
    """A file that can only be loaded by executing code from it."""


class OutputExistsError(FinetuneError, FileExistsError):
    """An output that would overwrite an earlier result."""


class OutputError(FinetuneError, OSError):
    """A file that cannot be written: a full disk, a folder without permission."""


class TrainingError(FinetuneError, RuntimeError):
    """Training that cannot go on, for example because losses are no longer finite."""


class NotFiniteError(TrainingError):
    """A loss or gradient that is NaN or infinite, so that no step can be made on it."""


class SimulationError(FinetuneError, RuntimeError):
    """Molecular dynamics that has exploded, so that nothing can be learnt from going on."""


class RunStoppedError(FinetuneError, RuntimeError, SystemExit):
    """A run that was stopped by a signal and can be resumed.

    A program that is asked to stop does so: as a :class:`SystemExit` that nobody catches, it ends a script with the
    message as its last line and exit code 1, without a traceback.

    Parameters
    ----------
    message
        Where the checkpoint is.
    signal_number
        Of the signal.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.code = message
        self.signal_number = signal_number


class ProcessError(FinetuneError, RuntimeError):
    """Another process of the same run stopped; the message says which and why."""
