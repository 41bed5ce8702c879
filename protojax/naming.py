"""Our parameters of a backbone beside the arrays of a file of weights: which names, shapes and orders of axes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from protojax import layouts
from protojax.layouts import Names, Row, Table


class Wanted(NamedTuple):
    """One of our parameters, and where it lies in the file."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    axes: tuple[int, ...] | None

    def shape_of_each(self, shift: int = 0) -> tuple[int, ...]:
        """The shape of a stored array; `shift` rows are added here and not stored."""
        shape = list(self.shape)
        if self.axes is not None:
            shape = [self.shape[self.axes.index(axis)] for axis in range(len(self.axes))]
        if len(self.names) > 1:
            shape[0] //= len(self.names)
        if shift:
            shape[1] -= shift
        return tuple(shape)


def wanted(module: nn.Module, table: Table, publisher: int) -> Iterator[Wanted]:
    """All parameters and statistics of a backbone, with the names that a publisher gives them."""
    # Any image of whole patches.
    side = 16 * getattr(module, "patch", 14)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), image)
    return named({path: x.shape for path, x in traverse_util.flatten_dict(shapes).items()}, table, publisher)


def named(flat: Mapping[tuple[str, ...], tuple[int, ...]], table: Table, publisher: int) -> Iterator[Wanted]:
    """Shapes of our parameters with the names that a publisher gives them."""
    rows = [(layouts.pattern(row.ours), row) for row in table.rows]
    matched = {path: _match("/".join(path[1:]), rows) for path in flat}
    blocks = sorted({(n["i"], n["j"]) for _, n in matched.values() if "j" in n})
    for path, (row, numbers) in matched.items():
        if "j" in numbers:
            numbers = {**numbers, "n": blocks.index((numbers["i"], numbers["j"]))}
        names = tuple(layouts.filled(name, numbers) for name in listed(row.theirs[publisher]))
        yield Wanted(path, flat[path], names, row.axes)


def as_stored(row: Wanted, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays that one of our parameters is in a file, by name."""
    array = np.asarray(value, np.float32)
    if row.axes is not None:
        array = array.transpose(np.argsort(row.axes))
    for name, part in zip(row.names, np.split(array, len(row.names)), strict=True):
        yield name, np.ascontiguousarray(part)


def _match(ours: str, rows: Sequence[tuple[Any, Row]]) -> tuple[Row, dict[str, int]]:
    row, match = next((row, match) for known, row in rows if (match := known.fullmatch(ours)))
    numbers = {name: int(number) for name, number in match.groupdict().items()}
    # The first block of EfficientNet-Lite has rows of its own, and is counted all the same.
    return row, numbers or ({"i": 0, "j": 0} if ours.startswith("stage_0_block_0/") else {})


def listed(names: Names) -> tuple[str, ...]:
    """The names of a parameter in a file, one or several."""
    return (names,) if isinstance(names, str) else names
