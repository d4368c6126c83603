"""Augmentation on the device: random keys for the examples of a batch, and a function of one
frame brought to all of its cameras' frames.

The functions that change frames are not here: libraries have them, such as `dm_pix` (crops,
brightness, contrast, hue, ...) and `jax.image`. They leave a part to the caller that is easy to get
wrong:

* Keys are a function of (key, step, row), so a resumed training draws what the one that was not
  stopped would have drawn, on any number of hosts and devices, as long as the global batches are
  the same. No state is needed for it.
* All frames of an example are changed in the same way, so that motion between them stays what it
  was.
* Frames travel as uint8 and are floats in [0, 1] only inside of the compiled step.

All functions are pure and work inside of `jax.jit`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from lerobot_grain._base.errors import InvalidRequestError


def example_keys(key: jax.Array, *, step: int | jax.Array, rows: jax.Array) -> jax.Array:
    """Returns a random key for every example of a batch.

    Args:
      key: of the whole training, such as `jax.random.key(0)`.
      step: number of the batch, so that a row gets another key in every epoch.
      rows: integers `(batch,)`, that tell the examples of a batch apart: `batch["index"]`.

    Returns:
      keys `(batch,)`; equal for equal arguments, whatever place in the batch an example has. Draw
      for several cameras independently with `jax.vmap(jax.random.fold_in, (0, None))(keys,
      camera_number)`.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), rows)


def augment_images(
    change: Callable[[jax.Array, jax.Array], jax.Array],
    keys: jax.Array,
    images: jax.Array,
    *,
    dtype: jnp.dtype | type = jnp.float32,
) -> jax.Array:
    """Returns the frames of a batch, changed by a random function of one frame.

        def crop_and_jitter(key, image):
            crop_key, light_key = jax.random.split(key)
            image = pix.random_crop(crop_key, image, (80, 80, 3))
            return pix.random_brightness(light_key, image, 0.2)

        keys = example_keys(key, step=step, rows=batch["index"])
        images = augment_images(crop_and_jitter, keys, batch["observation.image"])

    Args:
      change: `(key, image) -> image`, for one frame, float32 `(height, width, channels)` in [0,
        1]; may return another size. Values that it returns outside of [0, 1] are clipped.
      keys: `(batch,)`, of `example_keys`.
      images: `(batch, [time,] height, width, channels)`, uint8 or floats in [0, 1]. The frames of
        one example get the same key.
      dtype: of the result: a float dtype, for values in [0, 1], or uint8.

    Returns:
      `(batch, [time,] height, width, channels)` of the given dtype.

    Raises:
      InvalidRequestError: `images` or `keys` has another shape, or a dtype is neither uint8 nor
        float.
    """
    if images.ndim not in (4, 5) or keys.shape[:1] != images.shape[:1]:
        raise InvalidRequestError(
            f"augment_images: found keys of shape {keys.shape} and images of shape {images.shape}; "
            "expected (batch,) and (batch, [time,] height, width, channels)"
        )
    for found in (images.dtype, jnp.dtype(dtype)):
        if found != jnp.uint8 and not jnp.issubdtype(found, jnp.floating):
            raise InvalidRequestError(f"augment_images: found {found}; expected uint8 or floats")

    def changed(key: jax.Array, image: jax.Array) -> jax.Array:
        pixels = image.astype(jnp.float32)
        result = jnp.clip(change(key, pixels / 255 if image.dtype == jnp.uint8 else pixels), 0, 1)
        return (jnp.round(255 * result) if dtype == jnp.uint8 else result).astype(dtype)

    for_example = changed if images.ndim == 4 else jax.vmap(changed, (None, 0))
    return jax.vmap(for_example)(keys, images)
