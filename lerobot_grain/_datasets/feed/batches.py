"""Batches, put together without making single examples first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain

from lerobot_grain._base.arguments import check_int
from lerobot_grain._datasets.element_specs import batch_spec
from lerobot_grain._datasets.positions import Element, FollowingIterator
from lerobot_grain._reading.batches import Batch, Example


class MakesBatches(Protocol):
    """An iterator of examples that can also hand out batches."""

    def next_batch(self, batch_size: int, *, drop_remainder: bool, stats: Any) -> Batch:
        """Returns the next `batch_size` examples, or all that are left, as one batch.

        Args:
          batch_size: examples.
          drop_remainder: whether what is left is dropped where it is less.
          stats: Grain's, of the iterator that hands it out.

        Raises:
          StopIteration: there is none.
        """

    def get_state(self) -> dict[str, Any]: ...

    def set_state(self, state: dict[str, Any]) -> None: ...


class WithBatches(grain.IterDataset[Element]):
    """A dataset whose iterators make batches (`MakesBatches`)."""

    @property
    def makes_batches(self) -> bool:
        """Whether they do, of this dataset."""
        return True

    def batch(
        self,
        batch_size: int,
        *,
        drop_remainder: bool = False,
        batch_fn: Callable[[Sequence[Element]], Any] | None = None,
    ) -> grain.IterDataset[Any]:
        """Returns a dataset of batches, the same as Grain's `batch`; put together without making
        single examples first, unless a `.map` stands before it or a `batch_fn` is given.

        Args:
          batch_size: examples of a batch.
          drop_remainder: whether a last, shorter batch is left out.
          batch_fn: examples -> batch; `None`: arrays with a new first axis, strings as an array of
            them.

        Raises:
          InvalidRequestError: `batch_size` is not an int >= 1.
        """
        check_int("batch_size", batch_size, least=1, of="batch")
        if batch_fn is not None or not self.makes_batches:
            return super().batch(batch_size, drop_remainder=drop_remainder, batch_fn=batch_fn)
        return BatchIterDataset(self, batch_size, drop_remainder=drop_remainder)


class BatchIterDataset(grain.IterDataset[Batch]):
    """Batches, put together without making single examples first.

    Args:
      parent: whose iterators make batches (`MakesBatches`).
      batch_size: examples of a batch.
      drop_remainder: whether a last, shorter batch is left out.
    """

    def __init__(
        self, parent: grain.IterDataset[Example], batch_size: int, *, drop_remainder: bool
    ) -> None:
        super().__init__(parent)
        self._batch_size = batch_size
        self._drop_remainder = drop_remainder

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        return _BatchIterator(
            self._parent.__iter__(), self._batch_size, drop_remainder=self._drop_remainder
        )

    @property
    def _element_spec(self) -> Any:
        return batch_spec(
            grain.experimental.get_element_spec(self._parent),
            self._batch_size,
            drop_remainder=self._drop_remainder,
        )

    def __str__(self) -> str:
        return (
            f"BatchIterDataset(batch_size={self._batch_size}, "
            f"drop_remainder={self._drop_remainder})"
        )


class _BatchIterator(FollowingIterator[Batch]):
    def __init__(self, parent: Any, batch_size: int, *, drop_remainder: bool) -> None:
        super().__init__(parent)
        self._batch_size = batch_size
        self._drop_remainder = drop_remainder

    def __next__(self) -> Batch:
        parent: MakesBatches = self._parent
        return parent.next_batch(
            self._batch_size, drop_remainder=self._drop_remainder, stats=self._stats
        )

    def _get_next_index(self) -> int:
        index: int = grain.experimental.get_next_index(self._parent)
        return -(-index // self._batch_size)

    def _set_next_index(self, index: int) -> None:
        check_int("index", index, least=0, of="set_next_index")
        grain.experimental.set_next_index(self._parent, index * self._batch_size)

    def __str__(self) -> str:
        return (
            f"BatchDatasetIterator(batch_size={self._batch_size}, "
            f"drop_remainder={self._drop_remainder})"
        )
