"""`RemoteReaderIterDataset`: a stream that readers on other machines read, in the same order and
with the same state.
"""

from __future__ import annotations

from typing import Any, Protocol

import grain

from lerobot_grain._base.arguments import check_int
from lerobot_grain._datasets.feed.readers import ReadersIterator, ReadersIterDataset
from lerobot_grain._datasets.feed.remote.definition import definition_of
from lerobot_grain._datasets.feed.remote.lanes import LaneRequest, Lanes, OpenReaders
from lerobot_grain._datasets.positions import Element, PositionsIterDataset


class RemoteReaders(Protocol):
    """The readers, and how many: `FlightReaders`, `RayReaders`. A value that pickles."""

    @property
    def num_readers(self) -> int:
        """Shards that are read."""

    def open(self, dataset: grain.IterDataset[Any]) -> OpenReaders:
        """Begins to use readers for a dataset."""


class RemoteReaderIterDataset(ReadersIterDataset[Element]):
    """Reads its parent on other machines: the same examples in the same order, and the same state.

        dataset = LeRobotIterDataset("lerobot/pusht", delta_timestamps=chunk)
        readers = FlightReaders(["grpc+tls://reader-0:8815", "grpc+tls://reader-1:8815"])
        for batch in RemoteReaderIterDataset(dataset, readers=readers).batch(64): ...

    Readers fetch and decode; this process puts together what they send, as batches where `.batch`
    follows right after, and reads nothing of its dataset but `meta/`. The state is that of the
    parent: it restores with other readers, with another number of them, in `LeRobotIterDataset`
    itself, and on another number of shards.

    A reader or a machine that is lost costs some time. Nothing is lost, and nothing comes twice.

    Args:
      parent: a `LeRobotIterDataset`, a `ReadWindowsIterDataset`, or a `MixtureIterDataset` without
        `.map` on its components. `.map` and the like go after.
      readers: `FlightReaders` or `RayReaders`.
      pieces_ahead: pieces of batches of each reader that wait here, of at most 8 MiB each, or of
        one example, where that is larger; at least 1.
      patience_seconds: for which it waits where no reader answers.

    Raises:
      InvalidRequestError: an argument is out of its range, or `parent` is none of these. From
        `next`: a reader has another dataset; it says in what.
      StorageError: from `next`: no reader has answered for `patience_seconds`, or one refuses the
        token. The state stays as it is: the next call asks again.
    """

    def __init__(
        self,
        parent: grain.IterDataset[Element],
        *,
        readers: RemoteReaders,
        pieces_ahead: int = 2,
        patience_seconds: int = 60,
    ) -> None:
        for name, value in (("pieces_ahead", pieces_ahead), ("patience_seconds", patience_seconds)):
            check_int(name, value, least=1, of="RemoteReaderIterDataset")
        definition_of(parent, asked_by="RemoteReaderIterDataset")
        super().__init__(parent)
        self._readers = readers
        self._pieces_ahead = pieces_ahead
        self._patience_seconds = patience_seconds

    def __iter__(self) -> grain.DatasetIterator[Element]:
        engine = _Remote(
            self._parent,
            self._source,
            self._readers,
            pieces_ahead=self._pieces_ahead,
            patience_seconds=self._patience_seconds,
        )
        return ReadersIterator(self._parent, self._source, engine, name=str(self))

    def __str__(self) -> str:
        return f"RemoteReaderIterDataset({self._readers.num_readers} readers)"


class _Remote:
    """Starts lanes (`readers.Engine`)."""

    sends_examples = False

    def __init__(
        self,
        read: grain.IterDataset[Any],
        source: PositionsIterDataset,
        readers: RemoteReaders,
        *,
        pieces_ahead: int,
        patience_seconds: int,
    ) -> None:
        self._read = read
        self._source = source
        self._readers = readers
        self._pieces_ahead = pieces_ahead
        self._patience_seconds = patience_seconds

    @property
    def num_readers(self) -> int:
        return self._readers.num_readers

    def start(self, state: dict[str, Any], piece_size: int | None) -> Lanes:
        """As of `readers.Engine`."""
        assert piece_size is not None, "readers on other machines send pieces"
        count = self.num_readers
        parts = [
            self._source.part.sliced(slice(lane, None, count), sequential_slice=False)
            for lane in range(count)
        ]
        return Lanes(
            self._readers.open(self._read),
            [LaneRequest(state, part, piece_size) for part in parts],
            pieces_ahead=self._pieces_ahead,
            patience_seconds=self._patience_seconds,
        )
