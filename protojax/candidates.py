"""The candidate database: encoded training examples as one pytree, which decisions lean on."""

from typing import Any

import jax
from flax import struct


@struct.dataclass
class CandidateDatabase:
    """Encoded training examples; a place without one has the id -1 and never gets a weight.

    A pytree, so that it goes through `jax.jit` as an argument. Its functions change nothing in place.
    """

    ids: jax.Array
    """int32 `[capacity]`, all different but for the -1 of empty places."""
    labels: jax.Array
    """int32 `[capacity]`."""
    embeddings: Any
    """What `Method.encode` made of them, a pytree of arrays `[capacity, ...]`; of ProtoAttend `keys` and `values`."""
