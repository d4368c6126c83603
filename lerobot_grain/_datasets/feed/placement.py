"""One batch on the devices: how it is laid out, and what becomes of dtypes.

A batch is any PyTree. Numbers and arrays of them become `jax.Array`s; everything else stays as it
is, on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from lerobot_grain._base.errors import InvalidRequestError
from lerobot_grain._datasets.element_specs import Spec

_NUMBERS = (np.ndarray, np.generic, jax.Array, bool, int, float, complex)


def put_on(sharding: jax.sharding.Sharding | None) -> Callable[[Any], Any]:
    """Returns the function that brings a batch to the devices, and returns when it is there."""
    # The only way to learn the default device that holds for every form in which it can be
    # configured is to use it.
    devices = jax.device_put(np.uint8(0)).devices() if sharding is None else sharding.device_set
    may_alias = any(device.platform == "cpu" for device in devices)

    def put(batch: Any) -> Any:
        leaves, structure = jax.tree_util.tree_flatten_with_path(batch)
        placed = [leaf for _, leaf in leaves]
        for number, (path, leaf) in enumerate(leaves):
            numbers = _numbers(leaf)
            if numbers is None:
                continue
            key = jax.tree_util.keystr(path, simple=True, separator="/")
            narrowed = _narrowed(numbers, key)
            host = narrowed.copy() if may_alias and narrowed is numbers else narrowed
            placed[number] = (
                jax.device_put(host) if sharding is None else _sharded(host, sharding, key)
            )
        jax.block_until_ready([leaf for leaf in placed if isinstance(leaf, jax.Array)])
        return jax.tree_util.tree_unflatten(structure, placed)

    return put


def _numbers(leaf: Any) -> npt.NDArray[Any] | None:
    """Returns a leaf as an array, where it is one of numbers (or bools); `None`: it stays on the
    host.
    """
    if not isinstance(leaf, _NUMBERS):
        return None
    array = np.asarray(leaf)
    return array if _is_numeric(array.dtype) else None


def _is_numeric(dtype: np.dtype[Any]) -> bool:
    # JAX's hierarchy of dtypes, which knows bfloat16 and its kin; NumPy's does not.
    return bool(jax.dtypes.issubdtype(dtype, np.number) or jax.dtypes.issubdtype(dtype, np.bool_))


def _narrowed(array: npt.NDArray[Any], key: str) -> npt.NDArray[Any]:
    """Returns the array in the dtype that JAX has for it: its own, or one of 32 bits, and in the
    byte order of the machine.
    """
    dtype = jax.dtypes.canonicalize_dtype(array.dtype).newbyteorder("=")
    if dtype == array.dtype:
        return array
    with np.errstate(over="ignore"):
        narrowed = array.astype(dtype)
    # JAX would wrap integers, and make infinities of floats, without a word. (What does not fit is
    # infinite only afterwards.)
    lost = narrowed != array if array.dtype.kind in "iu" else np.isinf(narrowed) & ~np.isinf(array)
    if lost.any():
        raise InvalidRequestError(
            f"{key}: {array[lost].flat[0]} ({array.dtype}) does not fit into {dtype}, which JAX "
            "makes of it; set jax_enable_x64, or change the key in a .map before the device feed"
        )
    return narrowed


def _sharded(host: npt.NDArray[Any], sharding: jax.sharding.Sharding, key: str) -> jax.Array:
    try:
        return jax.make_array_from_process_local_data(sharding, host)
    except (ValueError, AssertionError) as error:
        # for an array without axes, JAX 0.10.2 has no more than an assertion
        here = len(sharding.addressable_devices)
        raise InvalidRequestError(
            f"{key}: shape {host.shape} on this process cannot be laid out over "
            f"{sharding.num_devices} devices ({here} of this process) by "
            f"{getattr(sharding, 'spec', sharding)}: {error}; take a batch size that the sharding "
            "divides, leave out a last shorter batch with .batch(size, drop_remainder=True), and "
            "drop keys without a batch axis in a .map"
        ) from error


def spec_on(sharding: jax.sharding.Sharding | None, batch: Any) -> Any:
    """Returns the spec of batches on the devices, of that of batches on the host."""

    def on_devices(host: Any) -> Any:
        dtype = np.dtype(host.dtype)
        if not _is_numeric(dtype):
            return host
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        if None in host.shape:
            # The specs of JAX take sizes only.
            return Spec(host.shape, dtype)
        shape = host.shape if sharding is None else _global_shape(host.shape, sharding)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    return jax.tree.map(on_devices, batch)


def _global_shape(shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> tuple[int, ...]:
    """Returns the shape of the array of all processes, of that of the part of this one."""
    if sharding.is_fully_addressable:
        return shape
    # A size that every sharding over so many devices divides.
    size = sharding.num_devices
    here: list[set[int]] = [set() for _ in shape]
    for device, slices in sharding.devices_indices_map((size,) * len(shape)).items():
        if device.process_index == jax.process_index():
            for found, part in zip(here, slices, strict=True):
                found.update(range(*part.indices(size)))
    return tuple(n * size // len(found) for n, found in zip(shape, here, strict=True))
