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
import numpy.typing as npt

from lerobot_grain._base.arrays import Integers

Words = npt.NDArray[np.uint64]


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
    DRAW = (1 << 32) + 1
    STRIDE = (1 << 32) + 2
    CHUNKS = (1 << 32) + 3
    WINDOW = (1 << 32) + 4


# How many streams a group has.
_STREAMS = 4

# Constants of Philox4x64: words 0 and 2 are multiplied with the former, and the latter are added to
# the key each round.
_MULTIPLIERS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], np.uint64)
_WEYL = np.array([[0x9E3779B97F4A7C15], [0xBB67AE8584CAA73B]], np.uint64)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
# Words that are made one by one, in arrays that stay in the cache of a core: that takes a third of
# the time.
_WORDS_AT_A_TIME = 1 << 13
# Up to so many words are sorted in the way that has fewer steps.
_FEW_WORDS = 512


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
    return stable_order(
        words(length, stream, seed=seed, epoch=epoch, group=group, block=block, part=part)
    )


def stable_order(found: Words) -> Integers:
    """Returns the order of words, int64 `(n,)`; equal ones keep theirs."""
    if len(found) > _FEW_WORDS:
        return _order_of_many(found)
    # NumPy's other sort is up to five times as fast, and the same where no two are equal, which
    # happens once in 2**64 pairs.
    order = np.argsort(found)
    ordered = found[order]
    if (ordered[1:] == ordered[:-1]).any():
        return np.argsort(found, kind="stable")
    return order


def _order_of_many(found: Words) -> Integers:
    """Returns the same of many words.

    The lowest bits of each make room for its place, since sorting numbers takes a third of the time
    of sorting places by them. Words that differ in those bits only are put in order afterwards.
    """
    bits = np.uint64(len(found).bit_length())
    lowest = (np.uint64(1) << bits) - np.uint64(1)
    ordered = found & ~lowest
    ordered |= np.arange(len(found), dtype=np.uint64)
    ordered.sort()
    order: Integers = (ordered & lowest).view(np.int64)
    ordered >>= bits
    equal = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(equal):
        is_open = np.zeros(len(order), np.bool_)
        is_open[equal] = True
        is_open[equal + 1] = True
        # Those of one group follow each other, by place.
        members = order[is_open]
        order[is_open] = members[np.argsort(found[members], kind="stable")]
    return order


def first_of_permutation(
    length: int,
    count: int,
    stream: Stream,
    *,
    seed: int,
    epoch: int,
    block: int,
    part: int,
) -> Integers:
    """Returns the first `count` elements of a permutation, int64 `(count,)`; arguments as of
    `permutation`.

    Costs no sort of all words where these are few.
    """
    found = words(length, stream, seed=seed, epoch=epoch, block=block, part=part)
    if count >= length:
        return stable_order(found)
    candidates = np.flatnonzero(found <= np.partition(found, count)[count])
    return candidates[stable_order(found[candidates])][:count]


def words(
    length: int,
    stream: Stream,
    *,
    seed: int,
    epoch: int = 0,
    group: int = 0,
    block: int = 0,
    part: int = 0,
) -> Words:
    """Returns the first words of a stream, uint64 `(length,)`; arguments as of `permutation`."""
    # The lowest word of the counter is the one that Philox itself counts up, so the streams of two
    # counters never overlap.
    counter = block << 64 | part << 128 | (group * _STREAMS + stream) << 192
    return np.random.Philox(key=seed | epoch << 64, counter=counter).random_raw(length)


def words_at(
    places: Integers,
    stream: Stream,
    *,
    seed: int,
    epoch: int = 0,
    blocks: Integers | int = 0,
    parts: Integers | int = 0,
) -> Words:
    """Returns single words of many streams, uint64 `(n,)`: word `places[i]` of the stream whose
    counter has `blocks[i]` and `parts[i]`.

    The words that `words` has at these places. A generator of NumPy for each would take 100 times
    as long.

    Args:
      places: int64 `(n,)`, >= 0.
      stream, seed, epoch: as of `permutation`.
      blocks, parts: int64 `(n,)`, >= 0, or one number for all.
    """
    count = len(places)
    found = np.empty(count, np.uint64)
    for start in range(0, count, _WORDS_AT_A_TIME):
        some = slice(start, start + _WORDS_AT_A_TIME)
        of_some = places[some]
        # A counter gives four words. The first ones come from the counter that was counted up once.
        counter = np.empty((4, len(of_some)), np.uint64)
        counter[0] = (of_some >> 2) + 1
        counter[1] = blocks if isinstance(blocks, int) else blocks[some]
        counter[2] = parts if isinstance(parts, int) else parts[some]
        counter[3] = int(stream)
        made = _philox(counter, (seed, epoch))
        found[some] = made[of_some & 3, np.arange(len(of_some))]
    return found


def below(drawn: Words, limits: Integers) -> Integers:
    """Returns int64 `(n,)`: random numbers `floor(word * limit / 2**64)`, each at least 0 and less
    than its limit, int64 `(n,)`, of words, uint64 `(n,)`.
    """
    return _high(drawn, limits.astype(np.uint64)).astype(np.int64)


def _philox(counter: Words, key: tuple[int, int]) -> Words:
    """Returns the four output words of counters of four words, uint64 `(4, n)` each."""
    # Both halves of a round are the same but for their constants, and change places after it.
    even, odd = counter[::2], counter[1::2]
    keys = np.array([key], np.uint64).T
    for _ in range(_ROUNDS):
        mixed = _high(even, _MULTIPLIERS)[::-1]
        mixed ^= odd
        mixed ^= keys
        odd = (even * _MULTIPLIERS)[::-1]
        even = mixed
        keys = keys + _WEYL
    return np.stack((even, odd), axis=1).reshape(4, -1)


def _high(one: Words, other: Words) -> Words:
    """Returns the upper 64 bits of the products, uint64, in the shape of `one`."""
    # NumPy has no product of 128 bits, so it is put together from halves of 32. In place, so that
    # the arrays are few and stay in the cache.
    low_2, high_2 = other & _LOW, other >> _HALF
    low, high = one & _LOW, one >> _HALF
    middle = low * low_2
    middle >>= _HALF
    middle += high * low_2
    low *= high_2
    low += middle & _LOW
    low >>= _HALF
    middle >>= _HALF
    high *= high_2
    high += middle
    high += low
    return high


def shuffled_episodes(num_episodes: int, *, seed: int) -> Integers:
    """Returns the episodes in the order in which `train_eval_split` draws them.

    It stays the same when others are added at the end.
    """
    return permutation(num_episodes, Stream.SPLIT, seed=seed)
