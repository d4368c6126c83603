"""The definition in docs/architecture/order.md a second time, step by step, with lists: slow; and
shuffles to try it with.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from lerobot_grain._order.shuffle import Shuffle

# Data file, and rows.
Clip = tuple[int, list[int]]

# Of orders with weights or strides, whose second implementation is slower still.
SMALL_SHUFFLES = st.builds(
    Shuffle,
    seed=st.one_of(st.integers(0, 9), st.integers(0, 2**64 - 1)),
    buffer_size=st.integers(1, 100),
    clip_length=st.integers(1, 20),
    num_parts=st.integers(1, 70),
    open_files=st.one_of(st.none(), st.integers(1, 4)),
)


def philox_words(
    length: int, seed: int, epoch: int, block: int, part: int, purpose: int
) -> list[int]:
    key = np.array([seed, epoch], np.uint64)
    counter = np.array([0, block, part, purpose], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(length).tolist()


def philox_order(
    length: int, seed: int, epoch: int, block: int, part: int, purpose: int
) -> list[int]:
    words = philox_words(length, seed, epoch, block, part, purpose)
    return sorted(range(length), key=lambda place: (words[place], place))


def clips_of(
    first_rows: list[int], lengths: list[int], data_files: list[int], clip_length: int
) -> list[Clip]:
    """Step 1 of the order."""
    clips = []
    for first, length, file in zip(first_rows, lengths, data_files, strict=True):
        rows = list(range(first, first + length))
        clips += [
            (file, rows[start : start + clip_length]) for start in range(0, length, clip_length)
        ]
    return clips


def naive_order(clips: list[Clip], shuffle: Shuffle, epoch: int) -> list[int]:
    """Steps 2 to 6."""
    # 2. Groups of data files, and the order of the clips in each.
    groups = [clips]
    if shuffle.open_files is not None:
        files = sorted({file for file, _ in clips})
        files = [files[place] for place in philox_order(len(files), shuffle.seed, epoch, 0, 0, 1)]
        opened = [
            files[start : start + shuffle.open_files]
            for start in range(0, len(files), shuffle.open_files)
        ]
        groups = [[clip for clip in clips if clip[0] in together] for together in opened]
    result: list[int] = []
    for number, members in enumerate(groups):
        ordered = [
            members[place][1]
            for place in philox_order(len(members), shuffle.seed, epoch, 0, 0, number * 4)
        ]
        rows = list(itertools.chain.from_iterable(ordered))
        # 3. Parts.
        num_parts = shuffle.num_parts
        while num_parts > 1 and len(members) / num_parts < 2:
            num_parts //= 2
        parts, start = [], 0
        for part in range(num_parts):
            stop = start + len(rows) // num_parts + (1 if part < len(rows) % num_parts else 0)
            parts.append(rows[start:stop])
            start = stop
        # 4. Blocks inside each part.
        full = max(1, shuffle.buffer_size // num_parts)
        for part, content in enumerate(parts):
            mixed, rest, block = [], content, 0
            while rest:
                length = full - part * full // num_parts if block == 0 else full
                cut, rest = rest[:length], rest[length:]
                mixed += [
                    cut[place]
                    for place in philox_order(
                        len(cut), shuffle.seed, epoch, block, part, number * 4 + 2
                    )
                ]
                block += 1
            parts[part] = mixed
        # 5. Deal.
        result += [parts[place % num_parts][place // num_parts] for place in range(len(rows))]
    return result


DRAW, STRIDE, CHUNKS = 2**32 + 1, 2**32 + 2, 2**32 + 3


def naive_weights(weights: list[float]) -> list[int]:
    """Weights of rows, scaled to mean 1 over those above 0, in units of 2**-32."""
    exact = [Fraction(weight) for weight in weights]
    total = sum(exact)
    count = sum(weight > 0 for weight in exact)
    # `round` of a Fraction goes to the even one of two that are as near.
    return [max(1, round(weight * count / total * 2**32)) if weight else 0 for weight in exact]


def naive_copies(
    clips: list[Clip], scaled: dict[int, int], seed: int, number: int
) -> list[tuple[int, int, Clip]]:
    """The copies of a round: number of the clip and of the walk, and the clip with the rows that
    are kept.

    Args:
      clips: all, in the order of episodes and rows.
      scaled: row -> weight in units of 2**-32.
      number: of the round.
    """
    largest = [max(scaled[row] for row in rows) for _, rows in clips]
    members = [clip for clip, weight in enumerate(largest) if weight]
    left = sum(weight > 0 for weight in scaled.values())
    found: list[tuple[int, int, int, list[int]]] = []
    draw = 0
    while left:
        running = philox_words(1, seed, number, draw, 1, DRAW)[0] >> 32
        for place in philox_order(len(members), seed, number, draw, 0, DRAW):
            clip = members[place]
            before, running = running, running + largest[clip]
            for copy in range((running >> 32) - (before >> 32)):
                word = philox_words(clip + 1, seed, number, draw, 2 + copy, DRAW)[clip]
                passed = word * largest[clip] >> 64
                kept = []
                for row in clips[clip][1]:
                    earlier, passed = passed, passed + scaled[row]
                    if passed // largest[clip] > earlier // largest[clip]:
                        kept.append(row)
                kept = kept[:left]
                left -= len(kept)
                if kept:
                    found.append((clip, draw, copy, kept))
        draw += 1
    return [(clip, draw, (clips[clip][0], rows)) for clip, draw, _, rows in sorted(found)]


def naive_strided(
    rows: list[list[int]], frames: list[list[int]], numbers: list[int], step: int, seed: int
) -> list[set[int]]:
    """The rows of each epoch of a cycle.

    Args:
      rows, frames: of each selected episode, the selected ones.
      numbers: of the selected episodes.
    """
    drawn = [philox_words(1, seed, 0, number, 0, STRIDE)[0] % step for number in numbers]
    return [
        {
            row
            for phase, its_rows, its_frames in zip(drawn, rows, frames, strict=True)
            for row, frame in zip(its_rows, its_frames, strict=True)
            if (frame + epoch + phase) % step == 0
        }
        for epoch in range(step)
    ]


def naive_chunks(
    first_rows: list[int],
    lengths: list[int],
    *,
    frames: int | None,
    overlap: int,
    drop_shorter: bool,
) -> list[list[int]]:
    """The rows of the chunks, in the order of episodes and frames."""
    chunks = []
    for first, length in zip(first_rows, lengths, strict=True):
        rows = list(range(first, first + length))
        left = rows
        while True:
            cut = left if frames is None else left[:frames]
            if frames is None or len(cut) == frames or not drop_shorter:
                chunks.append(cut)
            if cut[-1] == rows[-1]:
                break
            left = left[len(cut) - overlap :]
    return chunks


def naive_chunk_order(
    chunks: list[list[int]],
    seed: int | None,
    num_epochs: int,
    weights: list[float] | None = None,
) -> list[list[int]]:
    """The chunks of so many epochs, one after the other; `weights` of each chunk."""
    found = []
    for epoch in range(num_epochs):
        numbers = list(range(len(chunks)))
        if weights is not None:
            numbers = [number for number in numbers if weights[number]]
            if seed is not None and len(set(weights)) > 1:
                clips = [(0, [number]) for number in range(len(chunks))]
                scaled = dict(enumerate(naive_weights(weights)))
                numbers = [number for number, _, _ in naive_copies(clips, scaled, seed, epoch)]
        order: Iterable[int] = range(len(numbers))
        if seed is not None:
            order = philox_order(len(numbers), seed, epoch, 0, 0, CHUNKS)
        found += [chunks[numbers[place]] for place in order]
    return found
