"""The exceptions of the package, by whose fault it is, and its warning.

    LeRobotGrainError
    +-- InvalidRequestError (also a ValueError)   the caller asked for something that cannot be
    |   +-- StateMismatchError                    a state that does not belong to this stream
    +-- DatasetFormatError                        the dataset is not what the format (or this
    |                                             package) can read
    +-- StorageError (also an OSError)            the Hub, the network or the file system failed
        +-- MissingFileError                      a file of the dataset that is not there

    LeRobotGrainWarning (a UserWarning)           the dataset is odd, or slow to read; what is read
                                                  is right nevertheless

Rules:
* Every message says what was found, what was expected and where (repository@commit, path, episode,
  camera, byte range), and the remedy if there is one.
* Every exception takes exactly one string, so that it survives pickling between processes (Grain's
  worker processes hang on exceptions that do not).
* No message holds a token or a signed URL.
* No message is longer than a few lines, whatever a file holds: `short_repr`.
"""

from __future__ import annotations

import reprlib

# Longer than any value that is right, short enough to read.
_MAX_SHOWN = 400


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes no ints of more than 4,300 digits
            return f"an int of {x.bit_length()} bits"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12


def short_repr(value: object) -> str:
    """Returns a value that was found in a file for a message: as `repr` gives it, cut where it is
    long or nested deeply.
    """
    text = _SHORT.repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


class LeRobotGrainError(Exception):
    """Base class of every error that this package raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(message)


class InvalidRequestError(LeRobotGrainError, ValueError):
    """The caller asked for something that does not exist or does not make sense."""


class StateMismatchError(InvalidRequestError):
    """An iterator state was taken from another stream, and nothing was restored."""


class DatasetFormatError(LeRobotGrainError):
    """A file of the dataset is malformed, contradicts another one, or uses something that is not
    supported.
    """


class StorageError(LeRobotGrainError, OSError):
    """Bytes could not be read: missing or gated repository, missing file, network failure, wrong
    answer.
    """


class MissingFileError(StorageError):
    """The dataset, which is there, does not hold a file that its metadata names."""


class LeRobotGrainWarning(UserWarning):
    """Something about a dataset that does not change what is read: a repair, an oddity
    (`Repository.notes`), or what makes it slow.
    """
