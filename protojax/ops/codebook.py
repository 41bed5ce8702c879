"""A codebook: its loss, how much of it is used, how it starts, and what becomes of codes that nothing uses."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from protojax.ops import sharded
from protojax.ops.quantize import check_split


def codebook_loss(vectors: jax.Array, codes: jax.Array, index: jax.Array, mesh: Mesh | None = None) -> jax.Array:
    """mean |sg[z] - c_q(z)|^2 over the vectors (ProtoQuant, equation 4): only the codes have a derivative.

    Args:
      vectors: floating `[vectors, d]`, at least one, on all devices.
      codes: floating `[codes, d]`.
      index: int32 `[vectors]`, the code of each vector; from `nearest`.
      mesh: codes are split along its first axis, and no row of them leaves its device. Where None, it is that of
        concrete codes, if they are split.

    Raises:
      ValueError: shapes that do not fit each other, or codes that do not divide evenly among the devices.
    """
    vectors, codes, index = jnp.asarray(vectors), jnp.asarray(codes), jnp.asarray(index)
    if vectors.ndim != 2 or codes.ndim != 2 or vectors.shape[1] != codes.shape[1] or not vectors.shape[0]:
        raise ValueError(f"vectors [n, d] and codes [m, d] were expected, got {vectors.shape} and {codes.shape}")
    if index.shape != vectors.shape[:1] or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            f"a code of each of the {vectors.shape[0]} vectors was expected, got {index.dtype} of shape {index.shape}"
        )
    vectors = lax.stop_gradient(vectors).astype(jnp.float32)
    mesh = sharded.mesh_of(codes) if mesh is None else mesh
    if mesh is None:
        return _squares(vectors, codes, index).mean()
    check_split(mesh, codes.shape[0])
    axis = mesh.axis_names[0]

    def own(vectors: jax.Array, codes: jax.Array, index: jax.Array) -> jax.Array:
        place = index - lax.axis_index(axis) * codes.shape[0]
        here = (place >= 0) & (place < codes.shape[0])
        squares = _squares(vectors, codes, jnp.where(here, place, 0))
        return lax.psum(jnp.where(here, squares, 0).sum(), axis) / vectors.shape[0]

    everywhere = PartitionSpec()
    specs = everywhere, PartitionSpec(axis), everywhere
    return jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False)(vectors, codes, index)


def _squares(vectors: jax.Array, codes: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.square(vectors - codes[index].astype(jnp.float32)).sum(axis=1)


def usage(index: jax.Array, codes: int) -> jax.Array:
    """int32 `[codes]`: how often each code was chosen.

    Args:
      index: integers of any shape; those that are no code are left out.
      codes: how many there are.
    """
    # A negative place would count from the end.
    places = jnp.where(index < 0, codes, index).reshape(-1)
    return jnp.zeros((codes,), jnp.int32).at[places].add(1, mode="drop")


def perplexity(counts: jax.Array) -> jax.Array:
    """exp of the entropy of how often codes are chosen: as many equally frequent codes would be as surprising.

    Args:
      counts: at least 0, `[codes]`.

    Returns:
      float32: 1 where one code is always chosen, the number of codes where all are equally; 0 where nothing is counted.
    """
    counts = counts.astype(jnp.float32)
    total = counts.sum()
    shares = counts / jnp.where(total > 0, total, 1)
    entropy = -(shares * jnp.log(jnp.where(shares > 0, shares, 1))).sum()
    return jnp.where(total > 0, jnp.exp(entropy), 0)


def orthogonal_codes(key: jax.Array, codes: int, size: int) -> jax.Array:
    """Random codes float32 `[codes, size]`, orthogonal to each other; of more codes than features, the columns are."""
    return jax.nn.initializers.orthogonal()(key, (codes, size), jnp.float32)


def sampled_codes(key: jax.Array, vectors: jax.Array, codes: int) -> jax.Array:
    """Different ones of the vectors `[n, d]`, drawn uniformly, as codes float32 `[codes, d]`.

    Raises:
      ValueError: there are fewer vectors than codes.
    """
    _check_enough(vectors, codes)
    # Without replacement by the largest of random numbers: a permutation would sort them all.
    _, chosen = lax.top_k(jax.random.bits(key, (vectors.shape[0],)), codes)
    return vectors[chosen].astype(jnp.float32)


def kmeans_plus_plus_codes(key: jax.Array, vectors: jax.Array, codes: int) -> jax.Array:
    """Codes float32 `[codes, d]` drawn one by one, far from those before (Arthur and Vassilvitskii 2007).

    The first is a vector drawn uniformly; every further one is drawn with a probability in proportion to the squared
    distance to the nearest of those before. That is one pass over the vectors for each code.

    Args:
      key: of the draws.
      vectors: floating `[n, d]`.
      codes: how many; where fewer vectors are different, some codes are the same.

    Raises:
      ValueError: there are fewer vectors than codes.
    """
    _check_enough(vectors, codes)
    vectors = vectors.astype(jnp.float32)
    keys = jax.random.split(key, codes)

    def draw(step: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chosen, distances = carry
        farthest = distances.max()
        # Any of them is drawn first, and where every vector is a code already.
        logits = jnp.where((farthest > 0) & jnp.isfinite(farthest), jnp.log(distances), 0)
        place = jax.random.categorical(keys[step], logits).astype(jnp.int32)
        own = jnp.square(vectors - vectors[place][None]).sum(axis=1)
        return chosen.at[step].set(place), jnp.minimum(distances, own)

    start = jnp.zeros((codes,), jnp.int32), jnp.full((vectors.shape[0],), jnp.inf)
    chosen, _ = lax.fori_loop(0, codes, draw, start)
    return vectors[chosen]


def revived(key: jax.Array, codes: jax.Array, counts: jax.Array, vectors: jax.Array) -> jax.Array:
    """The codes, those that were never chosen replaced by vectors drawn at random.

    Args:
      key: of the draw.
      codes: floating `[codes, d]`.
      counts: `[codes]`, how often each was chosen; from `usage`.
      vectors: floating `[n, d]`, at least one; two codes may get the same one where there are fewer than codes.
    """
    drawn = jax.random.choice(key, vectors.shape[0], codes.shape[:1], replace=vectors.shape[0] < codes.shape[0])
    return jnp.where(counts[:, None] > 0, codes, vectors[drawn].astype(codes.dtype))


def _check_enough(vectors: jax.Array, codes: int) -> None:
    if vectors.ndim != 2:
        raise ValueError(f"vectors must have 2 axes, [vectors, size], got shape {vectors.shape}")
    if vectors.shape[0] < codes:
        raise ValueError(
            f"{codes} different codes cannot be drawn from {vectors.shape[0]} vectors: give more vectors (a larger "
            "batch), or fewer codes"
        )
