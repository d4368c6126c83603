"""`RayReaders`: readers that are actors of Ray, which starts and places them.

Rules:
* A lane has an actor. If it is lost, with its machine or alone, Ray is asked for another one,
  which goes on from the state after the last whole piece: an actor keeps nothing else.
* Each actor works on `_ASKED_AHEAD` pieces that were asked for, and on no more.
* Pieces lie in Ray's object store, in memory that this process sees: they are copied once, into the
  batch.
* The dataset goes to the actors as Ray sends every object, by pickling. Who reaches a cluster of
  Ray runs code on it anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import grain

from lerobot_grain._base.arguments import check_int
from lerobot_grain._base.errors import InvalidRequestError, StorageError
from lerobot_grain._datasets.feed.remote.lanes import LaneRequest, LostReaderError
from lerobot_grain._datasets.feed.worker_stream import Piece, PiecesIterDataset
from lerobot_grain._datasets.pipelines import only_source_under

# One is sent while the next one is made.
_ASKED_AHEAD = 2
# Between two looks whether this side was closed.
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class RayReaders:
    """Readers that are actors of Ray: `readers=` of `RemoteReaderIterDataset`.

        ray.init()
        RayReaders(4, num_cpus=8)

    Ray must have been started (`ray.init`), by whoever streams. Actors are spread over the machines
    of the cluster.

    Attributes:
      num_readers: actors, at least 1.
      num_cpus: cores that Ray sets aside for each.
      resources: other resources of each, by name, as Ray has them: `{"reader": 1}` for machines
        that were started with some.

    Raises:
      InvalidRequestError: an argument is out of its range, or Ray is not installed.
    """

    num_readers: int
    num_cpus: float = 1.0
    resources: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_int("num_readers", self.num_readers, least=1, of="RayReaders")
        for name, value in {"num_cpus": self.num_cpus, **self.resources}.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (is_number and 0 <= value < float("inf")):
                raise InvalidRequestError(
                    f"RayReaders: {name} is {value!r}; expected a number of at least 0"
                )
        _ray()

    def open(self, dataset: grain.IterDataset[Any]) -> OpenRayReaders:
        """As of `remote_readers.RemoteReaders`."""
        return OpenRayReaders(self, dataset)


class OpenRayReaders:
    """The actors of one stream (`lanes.OpenReaders`)."""

    def __init__(self, readers: RayReaders, dataset: grain.IterDataset[Any]) -> None:
        ray = _ray()
        if not ray.is_initialized():
            raise InvalidRequestError(
                "RayReaders: Ray was not started in this process; call ray.init() before"
            )
        self._ray = ray
        self._dataset = ray.put(dataset)
        self._actor = ray.remote(_Reader).options(
            num_cpus=readers.num_cpus,
            resources=dict(readers.resources),
            scheduling_strategy="SPREAD",
            max_restarts=0,
        )
        self._is_closed = False

    def pieces(self, lane: int, request: LaneRequest) -> Iterator[Piece]:
        """As of `lanes.OpenReaders`."""
        actor = self._actor.remote(self._dataset, request)
        asked: deque[Any] = deque()
        try:
            while True:
                while len(asked) < _ASKED_AHEAD:
                    asked.append(actor.next_piece.remote())
                found = self._answer(lane, asked.popleft())
                if found is None:
                    return
                if isinstance(found, Exception):
                    raise found
                yield found
                del found
        finally:
            asked.clear()
            self._ray.kill(actor)

    def _answer(self, lane: int, asked: Any) -> Any:
        ray = self._ray
        while not self._is_closed:
            try:
                return ray.get(asked, timeout=_LOOK_SECONDS)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.RayTaskError as error:
                raise StorageError(
                    f"reader {lane} of Ray: {str(error).splitlines()[-1][:200]}; expected a piece; "
                    "use the same versions of all packages on all machines"
                ) from None
            except ray.exceptions.RayError as error:
                # The actor, its machine, or the memory in which the piece lay.
                text = next(iter(str(error).splitlines()), type(error).__name__)
                raise LostReaderError(f"reader {lane} of Ray was lost: {text[:200]}") from None
        raise StorageError("the readers were closed while they were in use")

    def close(self) -> None:
        """As of `lanes.OpenReaders`."""
        self._is_closed = True


class _Reader:
    """The actor: reads a lane."""

    def __init__(self, dataset: grain.IterDataset[Any], request: LaneRequest) -> None:
        source = only_source_under(dataset, asked_by="RayReaders")
        source.part = request.part
        self._dataset = PiecesIterDataset(
            dataset,
            source,
            request.state,
            of="RemoteReaderIterDataset",
            piece_size=request.piece_size,
        )
        self._pieces: grain.DatasetIterator[Piece] | None = None

    def next_piece(self) -> Piece | Exception | None:
        """Returns the next piece; `None`: there is none; or the error at its place."""
        try:
            if self._pieces is None:
                self._pieces = self._dataset.__iter__()
            piece: Piece = next(self._pieces)
            return piece
        except StopIteration:
            return None
        except Exception as error:
            return error


def _ray() -> Any:
    try:
        # It takes a second, and not everybody has it.
        import ray
    except ImportError:
        raise InvalidRequestError(
            "RayReaders: Ray is not installed; pip install 'lerobot_grain[ray]'"
        ) from None
    return ray
