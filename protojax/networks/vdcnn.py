"""A very deep convolutional network over characters (Conneau et al. 2016) in the sizes of ProtoAttend, appendix A.2."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from protojax.networks.layers import ConvNorm, DenseStack, check_axes, k_max_pool, keep, max_pool_triples

PADDING = 0
CODES = 71
"""Padding, 69 characters, and one code for every character outside the alphabet."""


class VDCNN(nn.Module):
    """Embedding, a convolution of stride 2, convolution blocks with max-pooling between, k-max pooling, dense layers.

    A block is one convolution of width 3 with normalisation and ReLU. Max-pooling of kernel 3 and stride 2 follows
    every second block but the last, which k-max pooling follows. A text's features do not depend on how far it is
    padded: padding is 0 after the embedding and after every layer, like the borders of a text that fills its array;
    normalisation does not count it and k-max pooling does not choose it. The fields are those of
    `protojax.config.VDCNNSettings`, the compute dtype and the name of the pmap axis.
    """

    embedding: int = 16
    stem: int = 64
    filters: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 512, 512)
    k_max: int = 8
    dense: tuple[int, ...] = (1024, 1024)
    norm: str = "batch"
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Encodes texts.

        Args:
          inputs: integer codes `[batch, length]`, 0 for padding (only at the end), at most 70. A code out of range
            makes the features NaN, in training those of the whole batch.
          train: whether statistics are those of the batch and dropout is drawn.

        Returns:
          features float32 `[batch, f]`; and what k-max pooling saw and chose: `map` and `mask` over its positions
          (each stands for `stride` characters, counted from the first), `chosen` int32 `[batch, k, channels]`, the
          positions in order, -1 where a text is too short to offer k.

        Raises:
          ValueError: the inputs are not codes, or too short for the largest k.
        """
        check_axes(inputs, ("batch", "length"), "VDCNN")
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise ValueError(f"VDCNN reads integer codes of characters, got {inputs.dtype}")
        common = {"norm": self.norm, "dtype": self.dtype, "axis_name": self.axis_name}
        mask = inputs != PADDING
        x = keep(self._embed(inputs), mask)
        mask = mask[:, ::2]
        x = nn.relu(ConvNorm(self.stem, (3,), 2, name="stem", **common)(x, train, mask))
        for i, filters in enumerate(self.filters, start=1):
            x = nn.relu(ConvNorm(filters, (3,), name=f"conv_{i}", **common)(x, train, mask))
            if i % 2 == 0 and i < len(self.filters):
                mask = mask[:, ::2]
                x = keep(max_pool_triples(x), mask)
        if x.shape[1] < self.k_max:
            raise ValueError(
                f"VDCNN chooses the {self.k_max} largest of {x.shape[1]} positions, which is all that texts of length "
                f"{inputs.shape[1]} leave: raise data.text.length or lower encoder.k_max"
            )
        values, chosen = k_max_pool(x, mask, self.k_max)
        values = values.reshape(values.shape[0], -1)
        features = DenseStack(self.dense, self.dropout, self.dtype, self.axis_name, name="dense")(values, train)
        return features, {"map": x, "mask": mask, "chosen": chosen}

    def _embed(self, codes: jax.Array) -> jax.Array:
        initial = nn.initializers.normal(self.embedding**-0.5)
        table = self.param("embedding", initial, (CODES, self.embedding), jnp.float32)
        # A matrix product, because the gradient of a lookup adds in no fixed order on GPU.
        one_hot = jax.nn.one_hot(codes, CODES, dtype=jnp.float32)
        embedded = jnp.dot(one_hot, table, precision=lax.Precision.HIGHEST)
        valid = (codes >= 0) & (codes < CODES)
        return jnp.where(valid[..., None], embedded, jnp.nan).astype(self.dtype)
