"""The convolutional autoencoder of Li et al. 2018 (section 4.1), and its variant with a latent map of 4x4 tokens.

    28 -> 14 -> 7 -> 4 -> 2 pixels, 32, 32, 32 and 10 maps: four 3x3 convolutions with bias and ReLU, and back

Sizes become ceil(size / stride), as TensorFlow's padding SAME makes them; the decoder retraces them whatever they are.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from protojax.networks.convolution import conv_general_dilated
from protojax.networks.layers import check_axes

_KERNEL = 3
_INITIALIZERS = {"normal": nn.initializers.normal(0.01), "he": nn.initializers.he_normal()}


class Autoencoder(nn.Module):
    """Encoder and mirrored decoder; weights from N(0, 0.01^2) as in the reference, or He-normal, biases 0.

    The fields are those of `protojax.config.AutoencoderSettings` and the compute dtype.
    """

    filters: tuple[int, ...] = (32, 32, 32, 10)
    strides: tuple[int, ...] = (2, 2, 2, 2)
    initializer: str = "normal"
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, shape: tuple[int, int, int] | None = None) -> jax.Array:
        """Encodes images, or decodes where `shape`, that of the image wanted, is given.

        Args:
          inputs: images float `[batch, height, width, channels]` in [0, 1], or latent maps `[batch, h, w, features]`.
          shape: static (height, width, channels).

        Returns:
          The latent maps float32 `[batch, h, w, filters[-1]]`, or the logits of the pixels float32 `[batch, *shape]`.

        Raises:
          ValueError: the inputs are not images, or not latent maps of images of this shape.
        """
        check_axes(inputs, ("batch", "height", "width", "channels"), "Autoencoder")
        if self.is_initializing() and shape is None:
            # One call makes the parameters of both halves.
            latent = self._encode(inputs)
            self._decode(latent, inputs.shape[1:])
            return latent
        return self._encode(inputs) if shape is None else self._decode(inputs, shape)

    def latent_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(h, w, features) of the latent map of images of this shape."""
        *_, last = self._sizes(shape)
        return (*last, self.filters[-1])

    def footprints(self, shape: tuple[int, int, int]) -> np.ndarray:
        """What every token of the latent map sees of an image: the share of the paths to it that start at each pixel.

        Receptive fields are nearly as large as the image; paths crowd at their centres, as influence does. A path
        through the middle of a kernel counts twice, so that strides of 2 leave no pattern.

        Returns:
          float64 `[h * w, height, width]`, each summing to 1.
        """
        rows, columns = (self._paths([size[axis] for size in self._sizes(shape)]) for axis in (0, 1))
        return np.einsum("iy,jx->ijyx", rows, columns).reshape(-1, *shape[:2])

    def _paths(self, sizes: list[int]) -> np.ndarray:
        """Shares of paths from every place to every token along one axis, `[tokens, size]`."""
        paths = np.eye(sizes[0])
        for size, wanted, stride in zip(sizes[:-1], sizes[1:], self.strides, strict=True):
            offset = np.arange(size)[None] - np.arange(wanted)[:, None] * stride + _before(size, wanted, stride)
            paths = np.maximum(2 - np.abs(offset - 1), 0) @ paths
        return paths / paths.sum(axis=1, keepdims=True)

    def _sizes(self, shape: tuple[int, int, int]) -> list[tuple[int, int]]:
        sizes = [(shape[0], shape[1])]
        for stride in self.strides:
            sizes.append((-(-sizes[-1][0] // stride), -(-sizes[-1][1] // stride)))
        return sizes

    def _encode(self, x: jax.Array) -> jax.Array:
        for i, (filters, stride) in enumerate(zip(self.filters, self.strides, strict=True), start=1):
            layer = nn.Conv(
                filters,
                (_KERNEL, _KERNEL),
                stride,
                kernel_init=_INITIALIZERS[self.initializer],
                dtype=self.dtype,
                conv_general_dilated=conv_general_dilated,
                name=f"encode_{i}",
            )
            x = nn.relu(layer(x))
        return x.astype(jnp.float32)

    def _decode(self, x: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
        if x.shape[1:] != self.latent_shape(shape):
            raise ValueError(
                f"a latent map of images {list(shape)} has the shape {list(self.latent_shape(shape))}, "
                f"got {list(x.shape[1:])}"
            )
        maps = [shape[2], *self.filters[:-1]]
        sizes = self._sizes(shape)
        for i in reversed(range(len(self.strides))):
            stride, wanted = self.strides[i], sizes[i]
            # What nn.ConvTranspose computes, which takes no convolution of others.
            layer = nn.Conv(
                maps[i],
                (_KERNEL, _KERNEL),
                padding=[_padding(size, n, stride) for size, n in zip(wanted, x.shape[1:3], strict=True)],
                input_dilation=stride,
                kernel_init=_INITIALIZERS[self.initializer],
                dtype=self.dtype,
                conv_general_dilated=conv_general_dilated,
                name=f"decode_{i + 1}",
            )
            x = layer(x)
            if i:
                x = nn.relu(x)
        return x.astype(jnp.float32)


def _before(size: int, wanted: int, stride: int) -> int:
    """Padding SAME before the first of `size` places, for a convolution with `wanted` outputs."""
    return max((wanted - 1) * stride + _KERNEL - size, 0) // 2


def _padding(wanted: int, size: int, stride: int) -> tuple[int, int]:
    """Of the dilated input of a transposed convolution, so that it undoes the padding SAME of the convolution."""
    low = _KERNEL - 1 - _before(wanted, size, stride)
    return low, wanted + _KERNEL - 2 - (size - 1) * stride - low
