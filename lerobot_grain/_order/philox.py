"""The only randomness of the package: permutations by the words of Philox4x64-10, a generator that
is driven by a counter.

The words are fixed by its definition (Salmon et al., SC 2011), and a permutation is their stable
sort, where the algorithm of `numpy.random.Generator.permutation` may change between NumPy versions.
Key and counter say which words: seed and epoch, and what they are for. So any permutation is found
without the ones before it, and no two uses share words.

People hold checkpoints of what is made of these words, so they cannot change:
docs/architecture/order.md, "The words".
"""

from __future__ import annotations

import enum

import numpy as np

from lerobot_grain._base.arrays import Integers


class Stream(enum.IntEnum):
    """The use of a stream of words, the lowest part of word 3 of its counter.

    The counter's word 3 is the stream plus `_STREAMS` times the number of the group, so the first
    four fill all values that groups reach. Further streams have values of at least 2**32: there is
    room for 2**64, and no dataset has 2**30 groups of files.
    """

    CLIPS = 0
    FILES = 1
    BLOCK = 2
    SPLIT = 3
    MIXTURE = 1 << 32


# How many streams a group has.
_STREAMS = 4


def permutation(
    length: int,
    stream: Stream,
    *,
    seed: int,
    epoch: int = 0,
    group: int = 0,
    block: int = 0,
    part: int = 0,
) -> Integers:
    """Returns a permutation of `range(length)`, int64 `(length,)`: the order of that many words;
    equal words keep their order.

    Args:
      length: number of elements.
      stream: what the permutation is for.
      seed, epoch: the key.
      group, block, part: the counter; 0 where a stream has no such number.
    """
    # The lowest word of the counter is the one that Philox itself counts up, so the streams of two
    # counters never overlap.
    counter = block << 64 | part << 128 | (group * _STREAMS + stream) << 192
    words = np.random.Philox(key=seed | epoch << 64, counter=counter).random_raw(length)
    return np.argsort(words, kind="stable")


def shuffled_episodes(num_episodes: int, *, seed: int) -> Integers:
    """Returns the episodes in the order in which `train_eval_split` draws them.

    It stays the same when others are added at the end.
    """
    return permutation(num_episodes, Stream.SPLIT, seed=seed)
