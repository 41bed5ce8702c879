"""Which examples every step reads, as pure functions of (seed, step).

Nothing is stored but the step: a resumed run, resident and streamed feeding, and any number of worker processes read
the same examples. Shuffling is a keyed permutation that is evaluated element by element, so that no step sorts or keeps
the order of an epoch. All arithmetic is in uint32, and runs alike in NumPy and inside a compiled function.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from protojax.data.permutation import hashed, mix, permute

MAX_EXAMPLES = 2**30
"""Most examples of a split, and of a batch, for which the arithmetic stays within uint32."""
MAX_STEPS = 2**31
"""Steps are below this: the step of a training state is an int32."""

Array = Any
"""A NumPy array, or a JAX array where the step is one."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Examples that are shuffled among themselves: the whole split, or one class of it."""

    start: int
    """Where the group begins in `Sampler.members`."""
    size: int
    batch: int
    """Rows of the group in every batch."""
    candidates: int
    """Rows of the group in every candidate set."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """What is drawn; immutable and hashable, so that it can be a static argument. `sampler` makes and checks one."""

    n: int
    """Examples of the split."""
    batch_size: int
    candidate_count: int
    seed: int
    groups: tuple[Group, ...]
    members: bytes = dataclasses.field(default=b"", repr=False)
    """Positions in the split, ordered by group, as int32; empty where there is one group."""
    views: int = 0
    """Augmented views of every example. Position p stands for view p // n of example p % n, and view 0 for the example
    as it is, which is drawn where there are no others."""


def sampler(
    n: int,
    batch_size: int,
    candidate_count: int,
    seed: int,
    labels: np.ndarray | None = None,
    class_shares: Sequence[float] | None = None,
    views: int = 0,
) -> Sampler:
    """Makes a sampler.

    Args:
      n: examples of the split.
      batch_size: examples of a batch. It may exceed `n`; a batch that crosses the end of an epoch may repeat examples.
      candidate_count: examples of a candidate set, 0 for none.
      seed: not negative.
      labels: int `[n]`, needed with `class_shares`.
      class_shares: share of each class in every batch and candidate set, summing to 1; rows that do not divide evenly
        go to the largest remainders. None draws from all examples alike.
      views: augmented views of every example, of which one is drawn for each row.

    Raises:
      ValueError: there are too few examples, in all or of one class, or too many, or a class gets no row.
    """
    if not 1 <= n <= MAX_EXAMPLES:
        raise ValueError(f"the split has {n} examples; sampling needs 1 to {MAX_EXAMPLES}")
    if not 1 <= batch_size <= MAX_EXAMPLES:
        raise ValueError(f"train.batch_size = {batch_size} must be 1 to {MAX_EXAMPLES}")
    if n * (1 + views) > MAX_STEPS:
        raise ValueError(f"encoder.views = {views} of {n} examples are more than {MAX_STEPS} positions: take fewer")
    if seed < 0:
        raise ValueError(f"train.seed = {seed} must not be negative")
    if not 0 <= candidate_count <= n:
        raise ValueError(
            f"train.candidate_count = {candidate_count}, but the training split has {n} examples, and the candidates "
            f"of a step are distinct: choose at most {n}"
        )
    if class_shares is None:
        return Sampler(n, batch_size, candidate_count, seed, (Group(0, n, batch_size, candidate_count),), views=views)
    if labels is None or len(labels) != n:
        given = 0 if labels is None else len(labels)
        raise ValueError(f"data.class_shares need the labels of all {n} examples, got {given}")
    sizes = np.bincount(labels, minlength=len(class_shares))
    if len(sizes) != len(class_shares):
        raise ValueError(
            f"data.class_shares has {len(class_shares)} shares, but the training split has labels up to "
            f"{len(sizes) - 1}: give one share for each class"
        )
    batch, candidates = _quotas(class_shares, batch_size), _quotas(class_shares, candidate_count)
    _check_classes(sizes, batch, candidates, batch_size, candidate_count)
    starts = np.cumsum(sizes) - sizes
    groups = tuple(Group(*map(int, row)) for row in zip(starts, sizes, batch, candidates, strict=True))
    members = np.argsort(labels, kind="stable").astype(np.int32)
    return Sampler(n, batch_size, candidate_count, seed, groups, members.tobytes(), views)


def batch_indices(sampler: Sampler, step: Any) -> Array:
    """Positions of the examples in the batch of a step.

    Batches follow one another in an endless stream of epochs; each epoch holds every example of a group once, in an
    order of its own.

    Args:
      sampler: what is drawn.
      step: an integer below `MAX_STEPS`, or an integer JAX scalar, then the result is a JAX array.

    Returns:
      int32 `[batch]`.

    Raises:
      ValueError: a step outside the range, where it is a plain number.
    """
    xp, step = _uint32(step)
    groups = sampler.groups
    sizes = _column([g.size for g in groups])
    epochs, offsets = _divide_product(step, _column([g.batch for g in groups]), sizes)
    group, place = _rows([g.batch for g in groups])
    # Below 2 * MAX_EXAMPLES, so the sum does not wrap around.
    offsets = offsets[group] + place
    sizes = sizes[group]
    epochs = epochs[group] + offsets // sizes
    within = permute(xp, offsets % sizes, epochs, sizes, _keys(sampler, "batch", group))
    return _viewed(xp, sampler, "batch", step, _members(xp, sampler, group, within))


def candidate_indices(sampler: Sampler, step: Any) -> Array:
    """Positions of the candidates of a step, all distinct, drawn anew for every step.

    Args:
      sampler: what is drawn.
      step: as in `batch_indices`.

    Returns:
      int32 `[candidates]`.

    Raises:
      ValueError: a step outside the range, where it is a plain number.
    """
    xp, step = _uint32(step)
    group, place = _rows([g.candidates for g in sampler.groups])
    sizes = _column([g.size for g in sampler.groups])[group]
    within = permute(xp, place, step, sizes, _keys(sampler, "candidates", group))
    return _viewed(xp, sampler, "candidates", step, _members(xp, sampler, group, within))


def _quotas(shares: Sequence[float], rows: int) -> np.ndarray:
    # The largest-remainder method; of equal remainders the first class wins.
    exact = np.asarray(shares, np.float64) * rows
    # The rounding keeps 0.3 * 10 from leaving a remainder just below 1.
    whole = np.floor(exact.round(9)).astype(np.int64)
    order = np.argsort(-(exact - whole).round(9), kind="stable")
    whole[order[: rows - whole.sum()]] += 1
    return whole


def _check_classes(
    sizes: np.ndarray, batch: np.ndarray, candidates: np.ndarray, batch_size: int, candidate_count: int
) -> None:
    for label, (size, rows, wanted) in enumerate(zip(sizes, batch, candidates, strict=True)):
        if size == 0:
            raise ValueError(f"data.class_shares gives class {label} a share, but the training split has none of it")
        if wanted > size:
            raise ValueError(
                f"data.class_shares asks for {wanted} candidates of class {label}, but the training split has {size} "
                "examples of it: lower its share or train.candidate_count"
            )
        if rows == 0:
            raise ValueError(
                f"class {label} gets no row of train.batch_size = {batch_size}: raise its share in data.class_shares "
                "or the batch size"
            )
        if candidate_count and wanted == 0:
            raise ValueError(
                f"class {label} gets none of train.candidate_count = {candidate_count}: raise its share in "
                "data.class_shares or the candidate count"
            )


def _uint32(step: Any) -> tuple[Any, Array]:
    """The array namespace that a step belongs to, and the step as uint32 `[1]` (NumPy warns where scalars wrap)."""
    if isinstance(step, jax.Array):
        return jnp, step.astype(jnp.uint32).reshape(1)
    if not 0 <= step < MAX_STEPS:
        raise ValueError(f"step {step} is not in [0, {MAX_STEPS})")
    return np, np.array([step], np.uint32)


def _column(values: Sequence[int]) -> np.ndarray:
    return np.array(values, np.uint32)


def _rows(quotas: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """The group of every row, and the place of the row in the group's quota.

    Groups are spread evenly over the rows, so that every device gets its part of each. One group is `[1]`.
    """
    if len(quotas) == 1:
        return np.zeros(1, np.int64), np.arange(quotas[0], dtype=np.uint32)
    group = np.repeat(np.arange(len(quotas)), quotas)
    place = np.concatenate([np.arange(quota, dtype=np.uint32) for quota in quotas])
    order = np.argsort((place + 0.5) / np.array(quotas)[group], kind="stable")
    return group[order], place[order]


def _members(xp: Any, sampler: Sampler, group: np.ndarray, within: Array) -> Array:
    """Positions in the split of the examples at places within their groups."""
    if not sampler.members:
        return within.astype(np.int32)
    starts = _column([g.start for g in sampler.groups])[group]
    return xp.asarray(np.frombuffer(sampler.members, np.int32))[starts + within]


def _viewed(xp: Any, sampler: Sampler, stream: str, step: Array, places: Array) -> Array:
    """Positions of a view of each example, drawn by its place and the step."""
    if not sampler.views:
        return places
    keys = _keys(sampler, f"{stream} views", np.zeros(1, np.int64))
    drawn = hashed(places.astype(np.uint32), mix(step ^ keys[0]) ^ keys[1]) % np.uint32(sampler.views)
    return places + (drawn.astype(np.int32) + np.int32(1)) * np.int32(sampler.n)


def _divide_product(step: Array, factors: np.ndarray, divisors: np.ndarray) -> tuple[Array, Array]:
    """`divmod(step * factor, divisor)` without a product beyond 32 bits; the quotient is taken modulo 2**32.

    Long division, the most significant digits of the step first, in digits as wide as the largest divisor allows.
    """
    bits = 31 - int(divisors.max() - 1).bit_length()
    factor_remainders = factors % divisors
    quotient = remainder = np.zeros_like(divisors)
    for shift in reversed(range(0, 31, bits)):
        digit = (step >> np.uint32(shift)) & np.uint32((1 << bits) - 1)
        # Below divisor * 2**(bits + 1) <= 2**32.
        part = (remainder << np.uint32(bits)) + digit * factor_remainders
        quotient = (quotient << np.uint32(bits)) + part // divisors
        remainder = part % divisors
    return quotient + step * (factors // divisors), remainder


def _keys(sampler: Sampler, stream: str, group: np.ndarray) -> np.ndarray:
    """Two uint32 keys `[2, rows]` of a stream of the seed, different for every group."""
    names = [f"{sampler.seed} {stream} {i}" for i in range(len(sampler.groups))]
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, "<u4").reshape(-1, 2)[group].T
