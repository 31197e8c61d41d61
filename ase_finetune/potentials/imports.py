"""Imports of the backends that leave the process as it was.

e3nn 0.4.4 loads its constants with ``torch.load`` in a way torch >= 2.6 refuses, and ``import mace``
sets an environment variable that turns torch's safe loading off for everyone. Both are dealt with
here and nowhere else: nothing is left behind.
"""

from __future__ import annotations

import importlib
import os
import pickle
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from ase_finetune.errors import BackendNotInstalledError

#: What ``torch.load`` raises on files that are torn, foreign or unsafe: there is no common type.
LOAD_ERRORS = (
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)

#: To be held while models are imported, built or loaded. What torch may load, the environment, the filters of warnings
#: and the compiler behind e3nn are one for the whole process, whatever threads there are.
ONE_AT_A_TIME = threading.RLock()


@contextmanager
def safe_globals(allowed: list[Any]) -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` accept ``allowed`` for the length of the block; one thread at a time."""
    serialization: Any = torch.serialization
    with ONE_AT_A_TIME:
        before = list(serialization.get_safe_globals())
        serialization.add_safe_globals(allowed)
        try:
            yield
        finally:
            # What imports inside the block have registered stays; what was allowed for the block goes.
            kept = [item for item in serialization.get_safe_globals() if item in before or item not in allowed]
            serialization.clear_safe_globals()
            serialization.add_safe_globals(kept)


@contextmanager
def unchanged_environment() -> Iterator[None]:
    """Undo what the block does to the environment variables; one thread at a time."""
    with ONE_AT_A_TIME:
        before = dict(os.environ)
        try:
            yield
        finally:
            for name in set(os.environ) - set(before):
                del os.environ[name]
            os.environ.update(before)


def import_backend(module: str, install: str) -> ModuleType:
    """Import a module of sevenn or mace.

    Parameters
    ----------
    module
        Dotted name, for example ``"sevenn.util"``.
    install
        What the user installs to get it, for the error message.

    Raises
    ------
    BackendNotInstalledError
        With the reason, if the package is missing or does not import.
    """
    try:
        with ONE_AT_A_TIME, safe_globals([slice]), unchanged_environment(), warnings.catch_warnings():
            # Deprecations inside third-party packages are not the user's business.
            warnings.simplefilter("ignore")
            importlib.import_module("e3nn.o3")
            return importlib.import_module(module)
    except ImportError as error:
        raise BackendNotInstalledError(
            f"the backend module {module} does not import ({error}); install it with: pip install {install}"
        ) from error
