"""The LSTM over rows of a table of ProtoAttend (Arik and Pfister 2020, appendix A.3)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from protojax.networks.layers import Dropout, check_axes


class LSTM(nn.Module):
    """One embedding of the row (Dense + ReLU), which an LSTM reads at every step under a new dropout mask.

    The features are its last output, after dropout too. The paper gives no size for the state; it is the width of the
    embedding here. The fields are those of `protojax.config.LSTMSettings`, the compute dtype and the name of the pmap
    axis.
    """

    steps: int = 4
    width: int = 64
    dropout: float = 0.5
    dtype: DTypeLike = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Encodes rows.

        Args:
          inputs: float `[batch, f]`.
          train: whether dropout is drawn.

        Returns:
          features float32 `[batch, width]`, the embedding `[batch, width]` as `embedded` and the outputs of all steps
          before the last dropout, `outputs` `[batch, steps, width]`.

        Raises:
          ValueError: the inputs are not rows.
        """
        check_axes(inputs, ("batch", "features"), "LSTM")
        embedded = nn.relu(nn.Dense(self.width, dtype=self.dtype, name="embedding")(inputs))
        cell = nn.OptimizedLSTMCell(self.width, dtype=self.dtype, name="cell")
        state = (jnp.zeros(embedded.shape, jnp.float32), jnp.zeros(embedded.shape, self.dtype))
        outputs = []
        for i in range(1, self.steps + 1):
            dropped = Dropout(self.dropout, self.axis_name, name=f"dropout_{i}")(embedded, train)
            state, output = cell(state, dropped)
            outputs.append(output)
        last = Dropout(self.dropout, self.axis_name, name="dropout_output")(outputs[-1].astype(jnp.float32), train)
        return last, {"embedded": embedded, "outputs": jnp.stack(outputs, axis=1)}
