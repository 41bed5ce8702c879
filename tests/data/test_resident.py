import jax.numpy as jnp
import numpy as np
import pytest

from protojax.data import resident
from protojax.data.source import DataError


class Numbers:
    """Example i has the id 100 + i and inputs of its own."""

    def __init__(self, n, odd=None):
        self.ids = np.arange(100, 100 + n, dtype=np.int32)
        self.labels = (np.arange(n) % 3).astype(np.int32)
        self.odd = odd

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        inputs = np.full((2, 3) if i != self.odd else (3, 2), i, np.uint8)
        return {"id": self.ids[i], "inputs": inputs, "label": self.labels[i]}


def test_load_reads_every_example_in_order():
    source = Numbers(7)
    arrays = resident.load(source)
    np.testing.assert_array_equal(arrays["id"], source.ids)
    np.testing.assert_array_equal(arrays["label"], source.labels)
    np.testing.assert_array_equal(arrays["inputs"], np.broadcast_to(np.arange(7)[:, None, None], (7, 2, 3)))
    assert {k: v.dtype.name for k, v in arrays.items()} == {"id": "int32", "inputs": "uint8", "label": "int32"}


def test_take_picks_rows():
    arrays = resident.load(Numbers(7), progress=False)
    taken = resident.take(arrays, jnp.array([6, 0, 6]))
    np.testing.assert_array_equal(taken["id"], [106, 100, 106])
    np.testing.assert_array_equal(taken["inputs"][:, 1, 2], [6, 0, 6])


def test_an_example_of_another_shape_is_named():
    with pytest.raises(DataError, match=r"example 104 has inputs uint8 \[3, 2\], example 100 has uint8 \[2, 3\]"):
        resident.load(Numbers(7, odd=4))


def test_an_empty_split():
    with pytest.raises(DataError, match="no examples"):
        resident.load(Numbers(0))
