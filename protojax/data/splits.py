"""Which examples stand in which split, and the proof that no example stands in two."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from protojax.data.source import DataError

TRAIN = "train"
PRECEDENCE = ("test", "validation", TRAIN)
"""Of equal contents, the one in the earliest of these splits is the original, the others are its copies."""

_SHOWN = 5


def assign(ids: np.ndarray, fractions: Mapping[str, float]) -> np.ndarray:
    """The split of every example, a function of its id alone.

    Every split draws its own uniform number from a 64-bit hash of (split, id). So an example keeps its split when
    others come and go, and the training part of an earlier division can be divided again without bias.

    Args:
      ids: integers `[examples]`.
      fractions: the share of all examples that each split takes, in order; `train` gets the rest.

    Returns:
      Split names `[examples]`, an array of strings.

    Raises:
      DataError: ids that are not integers, shares that are not in [0, 1), or that leave nothing for `train`.
    """
    ids = np.asarray(ids)
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim != 1:
        raise DataError(f"ids must be a vector of integers, got {ids.dtype} of shape {ids.shape}")
    for name, share in fractions.items():
        if name == TRAIN:
            raise DataError(f"{TRAIN} takes what the other splits leave: give no share for it (got {share:g})")
        if not 0.0 <= share < 1.0:
            raise DataError(f"the share of the {name} split must be in [0, 1), got {share:g}")
    if (total := sum(fractions.values())) >= 1.0:
        raise DataError(f"shares {dict(fractions)} sum to {total:g} and leave nothing for {TRAIN}")
    names = np.array([TRAIN, *fractions])
    chosen = np.zeros(len(ids), np.int64)
    left = 1.0
    for place, (name, share) in enumerate(fractions.items(), start=1):
        # The share of all examples, as a share of those that the splits before have left.
        chosen[(chosen == 0) & (_uniform(ids, name) < share / left)] = place
        left -= share
    return names[chosen]


def shuffled(ids: np.ndarray) -> np.ndarray:
    """A fixed random order of the examples, a function of their ids alone: positions `[examples]`."""
    return np.lexsort((ids, _uniform(np.asarray(ids), "order")))


def content_hash(parts: Iterable[bytes]) -> bytes:
    """A 128-bit hash of an input, equal for equal parts only; the label is no part of the content."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        # With its length in front, ("ab", "c") differs from ("a", "bc").
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def copies(hashes: Mapping[str, Mapping[int, bytes]]) -> dict[str, dict[int, tuple[str, int]]]:
    """The examples whose content stands in a split of higher precedence too.

    Args:
      hashes: content hash by id, by split. Splits other than those of `PRECEDENCE` come after them.

    Returns:
      For every split, the ids of its copies, each with split and id of an original. Equal contents within one split
      are none.
    """
    order = sorted(hashes, key=lambda name: PRECEDENCE.index(name) if name in PRECEDENCE else len(PRECEDENCE))
    originals: dict[bytes, tuple[str, int]] = {}
    found: dict[str, dict[int, tuple[str, int]]] = {name: {} for name in hashes}
    for name in order:
        found[name] = {i: originals[content] for i, content in hashes[name].items() if content in originals}
        for i, content in hashes[name].items():
            originals.setdefault(content, (name, i))
    return found


def check_disjoint(hashes: Mapping[str, Mapping[int, bytes]], remedy: str = "") -> None:
    """Checks that no content stands in two splits.

    Args:
      hashes: content hash by id, by split.
      remedy: what the caller can do about it, appended to the message.

    Raises:
      DataError: naming the ids.
    """
    found = [
        f"id {i} ({name}) is id {original} ({of})"
        for name, by_id in copies(hashes).items()
        for i, (of, original) in by_id.items()
    ]
    if found:
        raise DataError(f"{len(found)} examples stand in two splits: {_listed(found)}{remedy and '; '}{remedy}")


def _listed(items: Sequence[str]) -> str:
    more = len(items) - _SHOWN
    return ", ".join(items[:_SHOWN]) + (f", and {more} more" if more > 0 else "")


def _uniform(ids: np.ndarray, name: str) -> np.ndarray:
    # float64 in [0, 1) from the upper 53 bits; the salt separates the splits.
    salt = np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))
    hashed = _splitmix64(_splitmix64(ids.astype(np.int64).view(np.uint64)) ^ salt)
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix64(x: np.ndarray) -> np.ndarray:
    # Steele, Lea, Flood 2014; array arithmetic on uint64 wraps around, as the function asks.
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
