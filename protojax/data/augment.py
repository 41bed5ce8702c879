"""Augmentation of photographs on the device: pure functions of keys and a batch.

Where keys are those of `keys_of`, what happens to an example depends on the key of the batch and its id alone, not on
its place or its neighbours; only `mix` puts two examples together.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def keys_of(key: jax.Array, ids: jax.Array) -> jax.Array:
    """A key `[batch]` for every example with an id int32 `[batch]`."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)


def flip(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors every second image or so `[batch, height, width, channels]` left to right."""
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def erase(keys: jax.Array, images: jax.Array, share: float) -> jax.Array:
    """Fills a random rectangle of some images with Gaussian noise (Zhong et al. 2020, "Random erasing").

    The rectangle covers 2 % to a third of the image, with proportions of 0.3 to 3.3; what reaches beyond the image is
    cut off.

    Args:
      keys: `[batch]` keys.
      images: float `[batch, height, width, channels]`, normalised to mean 0, standard deviation 1.
      share: probability that an image is changed.
    """
    height, width = images.shape[1:3]

    def one(key: jax.Array, image: jax.Array) -> jax.Array:
        chosen_key, area_key, ratio_key, top_key, left_key, noise_key = jax.random.split(key, 6)
        area = jax.random.uniform(area_key, minval=0.02, maxval=1 / 3) * height * width
        ratio = jnp.exp(jax.random.uniform(ratio_key, minval=np.log(0.3), maxval=np.log(3.3)))
        inside = _rectangle(
            height,
            width,
            jax.random.uniform(top_key),
            jax.random.uniform(left_key),
            jnp.sqrt(area * ratio),
            jnp.sqrt(area / ratio),
        )
        erased = inside & jax.random.bernoulli(chosen_key, share)
        return jnp.where(erased[..., None], jax.random.normal(noise_key, image.shape, image.dtype), image)

    return jax.vmap(one)(keys, images)


def smooth_labels(labels: jax.Array, classes: int, smoothing: float = 0.0) -> jax.Array:
    """Targets float32 `[batch, classes]` of labels int32 `[batch]`: 1 - smoothing for the label, the rest for all."""
    return jax.nn.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes


def mix(
    key: jax.Array,
    inputs: jax.Array,
    targets: jax.Array,
    ids: jax.Array,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch: float = 0.5,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """MixUp (Zhang et al. 2018) or CutMix (Yun et al. 2019) of every example with the one before it in the batch.

    The example before the first one is the last. lambda ~ Beta(a, a) is the share of the example itself, drawn for each
    by the key and its id. MixUp takes this share of every value; CutMix replaces a rectangle, and its targets follow
    the share of the rectangle that lies in the image.

    Args:
      key: key of the batch.
      inputs: float `[batch, height, width, channels]`, images or maps of features.
      targets: float32 `[batch, classes]`.
      ids: int32 `[batch]`.
      mixup: a of MixUp; 0 leaves it out.
      cutmix: a of CutMix; 0 leaves it out.
      switch: probability of CutMix in a batch, where neither is left out.
      axis_name: mapped axis over which a batch is split under `pmap`; None where arrays are global.

    Returns:
      Inputs and targets of the same shapes.

    Raises:
      ValueError: both are left out.
    """
    if not mixup and not cutmix:
        raise ValueError("mix needs MixUp or CutMix: give mixup or cutmix a number above 0")
    switch_key, key = jax.random.split(key)
    keys = jax.vmap(jax.random.split)(keys_of(key, ids))
    other, other_targets = (_before(x, axis_name) for x in (inputs, targets))

    def shares(alpha: float) -> jax.Array:
        return jax.vmap(lambda k: jax.random.beta(k, alpha, alpha))(keys[:, 0])

    def blend(own: jax.Array) -> tuple[jax.Array, jax.Array]:
        return inputs * own[:, None, None, None] + other * (1 - own)[:, None, None, None], own

    def paste(own: jax.Array) -> tuple[jax.Array, jax.Array]:
        height, width = inputs.shape[1:3]

        def one(key: jax.Array, own: jax.Array) -> jax.Array:
            top, left = jax.random.uniform(key, (2,))
            side = jnp.sqrt(1 - own)
            return _rectangle(height, width, top, left, side * height, side * width)

        inside = jax.vmap(one)(keys[:, 1], own)
        return jnp.where(inside[..., None], other, inputs), 1 - inside.mean((1, 2), dtype=jnp.float32)

    if not mixup or not cutmix:
        mixed, own = paste(shares(cutmix)) if cutmix else blend(shares(mixup))
    else:
        cuts = jax.random.bernoulli(switch_key, switch)
        mixed, own = lax.cond(cuts, lambda: paste(shares(cutmix)), lambda: blend(shares(mixup)))
    return mixed, targets * own[:, None] + other_targets * (1 - own)[:, None]


def _before(x: jax.Array, axis_name: str | None) -> jax.Array:
    """The rows `[batch, ...]` before each row of the batch of all devices."""
    if axis_name is None:
        return jnp.roll(x, 1, axis=0)
    count = lax.axis_size(axis_name)
    last = lax.ppermute(x[-1:], axis_name, [(i, (i + 1) % count) for i in range(count)])
    return jnp.concatenate([last, x[:-1]])


def _rectangle(height: int, width: int, top: jax.Array, left: jax.Array, tall: jax.Array, wide: jax.Array) -> jax.Array:
    """bool `[height, width]`: a rectangle of a size in pixels about a centre given as shares of the sides."""
    rows = jnp.abs(np.arange(height) + 0.5 - top * height) < tall / 2
    columns = jnp.abs(np.arange(width) + 0.5 - left * width) < wide / 2
    return rows[:, None] & columns[None, :]
