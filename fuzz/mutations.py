"""Damage, by the structure of what is damaged: boxes of MP4, values of JSON, footers and page
headers of parquet.

Every function takes the random numbers and a whole input and returns another one; equal random
numbers give equal damage.
"""

from __future__ import annotations

import copy
import functools
import json
import struct
from dataclasses import dataclass
from random import Random
from typing import Any

# Counts, sizes and times that nearly fit, and that do not at all.
_NUMBERS = (
    0,
    1,
    2,
    7,
    8,
    15,
    16,
    255,
    1 << 15,
    (1 << 16) - 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)
_LARGE_NUMBERS = (*_NUMBERS, 1 << 32, 1 << 40, (1 << 62), (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def mutate_bytes(random: Random, data: bytes, start: int = 0, stop: int | None = None) -> bytes:
    """Changes, removes, doubles or inserts a few bytes of `data[start:stop]`."""
    stop = len(data) if stop is None else min(stop, len(data))
    if stop <= start:
        return data
    damaged = bytearray(data)
    action = random.randrange(8)
    place = random.randrange(start, stop)
    length = random.choice((1, 1, 2, 4, 8, 64))
    if action < 5:
        for _ in range(random.randint(1, 3)):
            place = random.randrange(start, stop)
            damaged[place] = random.choice(
                (
                    0,
                    1,
                    0x7F,
                    0x80,
                    0xFF,
                    damaged[place] ^ (1 << random.randrange(8)),
                    random.randrange(256),
                )
            )
    elif action == 5:
        del damaged[place : place + length]
    elif action == 6:
        damaged[place:place] = damaged[place : place + length]
    else:
        damaged[place:place] = random.randbytes(length)
    return bytes(damaged)


# --- MP4 -----------------------------------------------------------------------------------------

_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf")


@dataclass
class _Box:
    kind: bytes
    payload: bytes | list[_Box]
    # In place of size and type, where those lie.
    header: bytes | None = None

    def dump(self) -> bytes:
        payload = (
            self.payload
            if isinstance(self.payload, bytes)
            else b"".join(box.dump() for box in self.payload)
        )
        return (
            self.header or struct.pack(">I4s", (8 + len(payload)) & 0xFFFFFFFF, self.kind)
        ) + payload


def _parse_boxes(data: bytes) -> list[_Box]:
    boxes, offset = [], 0
    while offset + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, offset)
        size = max(size, 8)
        payload = data[offset + 8 : offset + size]
        boxes.append(_Box(kind, _parse_boxes(payload) if kind in _CONTAINERS else payload))
        offset += size
    return boxes


@functools.lru_cache(64)
def _parsed(data: bytes) -> tuple[_Box, ...]:
    return tuple(_parse_boxes(data))


def _copied(boxes: list[_Box]) -> list[_Box]:
    return [
        _Box(box.kind, box.payload if isinstance(box.payload, bytes) else _copied(box.payload))
        for box in boxes
    ]


def mutate_mp4(random: Random, data: bytes) -> bytes:
    """Damages an input of the target `mp4`: the size that the file is said to have (8 bytes), then
    its bytes.
    """
    if random.randrange(8) == 0:
        return data[:8] + mutate_bytes(random, data[8:])
    boxes = _copied(list(_parsed(data[8:])))
    for _ in range(random.randint(1, 3)):
        _mutate_boxes(random, boxes)
    file = b"".join(box.dump() for box in boxes)
    size = len(file)
    if random.randrange(6) == 0:
        size = random.choice((size - 1, size + 1, size // 2, 1 << 24, *_LARGE_NUMBERS[:-2]))
    return max(size, 0).to_bytes(8, "big") + file


def _mutate_boxes(random: Random, boxes: list[_Box]) -> None:
    parents = [boxes]
    for parent in parents:
        parents += [box.payload for box in parent if isinstance(box.payload, list)]
    # The deepest tables hold most of the meaning.
    siblings = random.choice(parents[-2:] if random.randrange(2) else parents)
    if not siblings:
        return
    place = random.randrange(len(siblings))
    box = siblings[place]
    action = random.randrange(12)
    if action < 5 and isinstance(box.payload, bytes):
        box.payload = _with_number(random, box.payload, random.choice((4, 8, 8, None, None, None)))
    elif action < 7 and isinstance(box.payload, bytes):
        box.payload = mutate_bytes(random, box.payload[:4096]) + box.payload[4096:]
    elif action == 7:
        large = struct.pack(">I4sQ", 1, box.kind, random.choice(_LARGE_NUMBERS))
        box.header = random.choice((struct.pack(">I4s", random.choice(_NUMBERS), box.kind), large))
    elif action == 8:
        box.kind = random.choice(
            (
                *_CONTAINERS,
                *(other.kind for parent in parents for other in parent),
                b"co64",
                b"mvex",
                b"moof",
            )
        )
    elif action == 9:
        del siblings[place]
    elif action == 10:
        siblings.insert(random.randrange(len(siblings) + 1), _copied([box])[0])
    else:
        other = random.choice(random.choice([parent for parent in parents if parent]))
        siblings[place] = _copied([other])[0]


def _with_number(random: Random, payload: bytes, place: int | None) -> bytes:
    """Sets a 32-bit number of a table: at `place`, where counts lie, or anywhere."""
    if len(payload) < 4:
        return payload
    place = (
        4 * random.randrange(len(payload) // 4) if place is None else min(place, len(payload) - 4)
    )
    (old,) = struct.unpack_from(">I", payload, place)
    number = (
        random.choice((*_NUMBERS, old + 1, old - 1, old * 2, random.getrandbits(32))) & 0xFFFFFFFF
    )
    return payload[:place] + struct.pack(">I", number) + payload[place + 4 :]


# --- JSON ----------------------------------------------------------------------------------------

_TEXTS = (
    *(
        "",
        "a",
        "float32",
        "int64",
        "video",
        "image",
        "string",
        "language",
        "bool",
        "v3.0",
        "v3.1",
        "v2.1",
        "channels",
        "parquet",
        "lance",
    ),
    *(
        "{",
        "}",
        "{}",
        "{0}",
        "{chunk_index}",
        "{chunk_index:03d}",
        "{file_index:0100000000d}",
        "{chunk_index.__class__}",
        "{video_key}",
    ),
    *(
        "../../x",
        "/etc/passwd",
        "https://example.org/x",
        "\\",
        "\x00",
        "\ud800",
        "\u0661",
        "é" * 300,
        "x" * 5000,
        "0:50",
    ),
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, [], {}, [[]], [1, None], {"a": 1}, [0.5], ["x"]),
    *(0, 1, -1, 2, 3, 255, 1 << 31, 1 << 40, 1 << 53, 1 << 63, 1 << 64, -(1 << 63), 10**400),
    *(
        0.0,
        -0.0,
        0.5,
        1e-320,
        1e300,
        1.7976931348623157e308,
        float("nan"),
        float("inf"),
        -float("inf"),
    ),
    *_TEXTS,
)
DTYPES = (
    None,
    "int8",
    "uint8",
    "int32",
    "uint64",
    "float16",
    "float32",
    "float64",
    "bool",
    "object",
    "str",
    "M8[s]",
    "m8[s]",
    "c16",
)


def mutate_json(random: Random, data: bytes) -> bytes:
    """Damages a JSON text: replaces, removes, doubles or renames values anywhere in its tree,
    sometimes bytes of the text.
    """
    if random.randrange(10) == 0:
        return mutate_bytes(random, data)
    tree = json.loads(data)
    for _ in range(random.randint(1, 4)):
        tree = _mutate_tree(random, tree)
    text = json.dumps(tree)
    if random.randrange(30) == 0:
        text = text.replace(
            "null", "[" * random.choice((100, 900, 5000)) + "]" * random.choice((100, 900, 5000)), 1
        )
    return text.encode("utf-8", "surrogatepass")


def _mutate_tree(random: Random, tree: Any) -> Any:
    # Down to a random depth, and there one change.
    if isinstance(tree, dict | list) and tree and random.randrange(6):
        key = random.choice(list(tree)) if isinstance(tree, dict) else random.randrange(len(tree))
        action = random.randrange(16)
        if action == 0:
            del tree[key]
        elif action == 1 and isinstance(tree, dict):
            tree[random.choice((random.choice(_TEXTS), str(key) + "x"))] = copy.deepcopy(tree[key])
        elif action == 1 and isinstance(tree, list):
            tree.insert(0, copy.deepcopy(tree[key]))
        elif key == "dtype" and action < 8:
            tree[key] = random.choice(DTYPES)
        else:
            tree[key] = _mutate_tree(random, tree[key])
        return tree
    if isinstance(tree, int | float) and abs(tree) < 1e300 and random.randrange(3) == 0:
        return tree + random.choice((-1, 1, 0.5, 0.25))
    if isinstance(tree, str) and tree and random.randrange(3) == 0:
        place = random.randrange(len(tree))
        return (
            tree[:place]
            + random.choice((*_TEXTS, "{file_index}", "..", "/"))
            + tree[place + random.randrange(2) :]
        )
    return copy.deepcopy(random.choice(_VALUES))


# --- parquet -------------------------------------------------------------------------------------


def mutate_parquet(random: Random, data: bytes) -> bytes:
    """Damages a parquet file: mostly its footer, which keeps its length, and the headers of its
    pages.
    """
    footer_bytes = int.from_bytes(data[-8:-4], "little")
    footer = len(data) - 8 - footer_bytes
    action = random.randrange(10)
    if action < 5:
        damaged = data
        for _ in range(random.randint(1, 2)):
            damaged = mutate_bytes(random, damaged, footer, len(damaged) - 8)
        length = max(len(damaged) - 8 - footer, 0)
        return damaged[:-8] + length.to_bytes(4, "little") + damaged[-4:]
    if action == 5:
        return mutate_bytes(random, data)
    # A page header begins with its type, field 1, in Thrift's compact protocol: 0x15, then 0 (data)
    # or 4 (dictionary), then field 2.
    pages = [
        at for kind in (b"\x15\x00\x15", b"\x15\x04\x15") for at in _places(data[:footer], kind)
    ]
    if not pages:
        return mutate_bytes(random, data, 0, footer)
    start = random.choice(pages)
    damaged = mutate_bytes(
        random, data, start, min(start + random.choice((8, 20, 40, 200)), footer)
    )
    # The footer stays at its place, and so do the pages that it names.
    return (
        damaged[: footer + len(damaged) - len(data)][:footer].ljust(footer, b"\0") + data[footer:]
    )


def _places(data: bytes, wanted: bytes) -> list[int]:
    found, place = [], data.find(wanted)
    while place >= 0:
        found.append(place)
        place = data.find(wanted, place + 1)
    return found
