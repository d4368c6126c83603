"""The files of pieces: how they are named, written, checked and found.

A *cell* is 4 MiB of a file of a dataset. Each cell of which something was fetched has a directory,
named by a hash of dataset, commit, path and number. In it lies one file for each piece, named by
the range that it holds: its bytes, and then a checksum for each 64 KiB of them, over place and
contents. A piece that differs is deleted, and its bytes are absent.

Nothing that is read here fails: what cannot be read is absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lerobot_grain._base.byte_ranges import ByteRange, Part
from lerobot_grain._storage.disk.entry_cache import delete, on_disk, opened

# Part of every hash, so pieces of other versions are not found.
_VERSION = "1"
# A fetched range of video mostly has 0.2 to 4 MiB, so few pieces are cut by the bounds of cells;
# and 16 GiB are 4,096 directories, which are looked through in 0.1 s.
CELL_BYTES = 4 << 20
# A read of a part of a piece checks no more than so much at each end.
_BLOCK_BYTES = 64 << 10
_DIGEST_BYTES = 16
# The directory of a cell takes a block of the disk.
DIRECTORY_BYTES = 4096
# An unfinished file of a killed process; the slowest disk writes 4 MiB in less.
_UNFINISHED_SECONDS = 600.0

# The file in the directory of a dataset that says which it is, for people. The time of its last
# change is when the dataset was last used.
ABOUT = "about"
_HASH = re.compile(r"[0-9a-f]{32}")
_PIECE = re.compile(r"(\d{1,19})-(\d{1,19})", re.ASCII)
_UNFINISHED = re.compile(r"\d{1,19}-\d{1,19}\.[0-9a-f]{16}\.part", re.ASCII)


class Cell(NamedTuple):
    """The directory of a cell, as it was found.

    Attributes:
      name: its hash.
      path: of the directory.
      pieces: the ranges of its pieces.
      nbytes: what all of it takes on disk.
    """

    name: str
    path: str
    pieces: list[ByteRange]
    nbytes: int


def hash_of(*texts: str) -> str:
    """Returns 32 hexadecimal digits that stand for some texts; for a dataset, or a cell."""
    return hashlib.blake2b("\0".join((_VERSION, *texts)).encode(), digest_size=16).hexdigest()


def cells_of(file: tuple[str, ...], wanted: ByteRange) -> Iterator[tuple[str, ByteRange]]:
    """Yields the hash of each cell that holds bytes of a range, and the range of these bytes."""
    for number in range(wanted.start // CELL_BYTES, -(-wanted.stop // CELL_BYTES)):
        start = number * CELL_BYTES
        extent = ByteRange(max(wanted.start, start), min(wanted.stop, start + CELL_BYTES))
        yield hash_of(*file, str(number)), extent


def _digests(
    cell: str, piece: ByteRange, first_block: int, contents: memoryview | bytes
) -> Iterator[bytes]:
    """Yields the checksum of each block of the contents, which begin with `first_block`."""
    view = memoryview(contents)
    for block, offset in enumerate(range(0, len(view), _BLOCK_BYTES), first_block):
        digest = hashlib.blake2b(
            f"{_VERSION} {cell} {piece.start} {piece.stop} {block}".encode(),
            digest_size=_DIGEST_BYTES,
        )
        digest.update(view[offset : offset + _BLOCK_BYTES])
        yield digest.digest()


def file_bytes(piece: ByteRange) -> int:
    """Returns the size of the file of a piece: its bytes, and then a checksum a block."""
    return piece.length + _DIGEST_BYTES * -(-piece.length // _BLOCK_BYTES)


def piece_path(folder: str, piece: ByteRange) -> str:
    """Returns the path of the file of a piece in the directory of its cell."""
    return os.path.join(folder, f"{piece.start}-{piece.stop}")


def _piece_named(name: str) -> ByteRange | None:
    found = _PIECE.fullmatch(name)
    if found is None:
        return None
    piece = ByteRange(int(found[1]), int(found[2]))
    return piece if piece.length > 0 else None


def checksums_of(cell: str, piece: ByteRange, contents: memoryview) -> bytes:
    """Returns the checksums of all blocks of a piece."""
    return b"".join(_digests(cell, piece, 0, contents))


def write_piece(
    dataset: str, cell: str, piece: ByteRange, payload: Iterable[bytes | memoryview], *, about: str
) -> None:
    """Writes a piece under another name and moves it into place.

    Args:
      dataset: the directory of its dataset.
      cell: the hash of its cell.
      piece: of the file.
      payload: its bytes, and then `checksums_of`.
      about: the name of the dataset.

    Raises:
      FileNotFoundError: somebody empties the directory at this moment.
      OSError: it cannot be written.
    """
    folder = os.path.join(dataset, cell)
    target = piece_path(folder, piece)
    temporary = f"{target}.{secrets.token_hex(8)}.part"
    try:
        try:
            file = open(temporary, "xb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            _name_dataset(dataset, about)
            file = open(temporary, "xb")  # noqa: SIM115
        with file:
            file.writelines(payload)
        os.replace(temporary, target)
    except BaseException:
        delete(temporary)
        raise


def read_cell(folder: str, wanted: ByteRange) -> list[Part]:
    """Returns what the directory of a cell holds of a range, sorted and disjoint."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    pieces = sorted(
        piece
        for piece in map(_piece_named, names)
        if piece is not None and piece.start < wanted.stop and wanted.start < piece.stop
    )
    found = []
    position = wanted.start
    for piece in pieces:
        part = ByteRange(max(position, piece.start), min(piece.stop, wanted.stop))
        if part.length <= 0:
            continue
        payload = _read_piece(folder, piece, part)
        if payload is not None:
            found.append(Part(part.start, payload))
            position = part.stop
    return found


def _read_piece(folder: str, piece: ByteRange, part: ByteRange) -> bytes | None:
    """Returns a part of a piece; None if it is not there any more, or not what was written."""
    first = (part.start - piece.start) // _BLOCK_BYTES
    stop = -(-(part.stop - piece.start) // _BLOCK_BYTES)
    offset = first * _BLOCK_BYTES
    length = min(stop * _BLOCK_BYTES, piece.length) - offset
    path = piece_path(folder, piece)
    try:
        with opened(path) as file:
            descriptor = file.fileno()
            is_whole = os.fstat(descriptor).st_size == file_bytes(piece)
            contents = os.pread(descriptor, length, offset)
            digests = os.pread(
                descriptor,
                (stop - first) * _DIGEST_BYTES,
                piece.length + first * _DIGEST_BYTES,
            )
    except OSError:
        return None
    cell = os.path.basename(folder)
    if (
        not is_whole
        or len(contents) != length
        or digests != b"".join(_digests(cell, piece, first, contents))
    ):
        delete(path)
        return None
    begin = part.start - piece.start - offset
    # The same object where it is all of it.
    return contents[begin : begin + part.length]


def hashed_folders(directory: str) -> Iterator[os.DirEntry[str]]:
    """Yields the directories in a directory that are named by a hash."""
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if _HASH.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield entry


def cells_in(dataset: str) -> Iterator[Cell]:
    """Yields the cells of a dataset; deletes unfinished files that nobody writes any more."""
    for folder in hashed_folders(dataset):
        pieces = []
        nbytes = DIRECTORY_BYTES
        with contextlib.suppress(OSError), os.scandir(folder.path) as entries:
            for entry in entries:
                if (piece := _piece_named(entry.name)) is not None:
                    pieces.append(piece)
                    nbytes += on_disk(file_bytes(piece))
                elif _UNFINISHED.fullmatch(entry.name):
                    with contextlib.suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if status.st_mtime < time.time() - _UNFINISHED_SECONDS:
                            os.unlink(entry.path)
                        else:
                            nbytes += on_disk(status.st_size)
        yield Cell(folder.name, folder.path, pieces, nbytes)


def delete_cell(folder: str) -> None:
    """Deletes the pieces of a cell, and its directory."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _piece_named(name) is not None or _UNFINISHED.fullmatch(name):
                delete(os.path.join(folder, name))
        os.rmdir(folder)


def remove_empty(folder: str) -> None:
    """Removes a directory, if it is empty."""
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _name_dataset(dataset: str, about: str) -> None:
    """Writes into the directory of a dataset which it is, for people; its time is the last use."""
    with contextlib.suppress(FileExistsError), open(os.path.join(dataset, ABOUT), "x") as file:
        file.write(f"{about}\n")


def last_use(dataset: str) -> float:
    """Raises:
    OSError: there is no such directory.
    """
    try:
        return os.stat(os.path.join(dataset, ABOUT)).st_mtime
    except FileNotFoundError:
        return os.stat(dataset).st_mtime
