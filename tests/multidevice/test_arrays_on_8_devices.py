import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import sharding
from protojax.config import AugmentSettings
from protojax.data import images, noise, resident, sampling

ARRAYS = {
    "id": np.arange(1797, dtype=np.int32),
    "inputs": np.random.default_rng(0).integers(0, 256, (1797, 8, 8, 1), np.uint8),
    "label": (np.arange(1797) % 10).astype(np.int32),
}


def test_split_pads_to_the_devices():
    mesh = sharding.mesh()
    placed = sharding.split(ARRAYS, mesh)
    assert mesh.size == 8 and placed["inputs"].sharding == sharding.along_data(mesh)
    assert {len(shard.data) for shard in placed["id"].addressable_shards} == {225}
    for name, array in sharding.to_host(placed).items():
        np.testing.assert_array_equal(array[:1797], ARRAYS[name])
        assert array.shape[0] == 1800 and not array[1797:].any()


def test_local_rows_must_divide():
    with pytest.raises(ValueError, match="12 rows of a process do not divide evenly among its 8 devices"):
        sharding.from_local(np.zeros((2, 12)), sharding.mesh(), axis=1)


@pytest.mark.parametrize("shares", [None, [0.1] * 10])
def test_a_step_reads_the_same_on_8_devices_and_moves_only_its_rows(shares):
    mesh = sharding.mesh()
    split, replicated = sharding.along_data(mesh), sharding.replicated(mesh)
    sampler = sampling.sampler(1797, 64, 160, 0, ARRAYS["label"], shares)
    settings = AugmentSettings(pad_crop=1, flip_horizontal=True)

    def read(arrays, step):
        batch = resident.take(arrays, sampling.batch_indices(sampler, step))
        batch = jax.lax.with_sharding_constraint(batch, split)
        inputs = images.transform(batch["inputs"], settings, jax.random.key(0), batch["id"])
        return batch["id"], inputs, noise.noisy_labels(batch["label"], batch["id"], 0.5, 10, 0)

    compiled = jax.jit(read, in_shardings=(split, replicated), out_shardings=split)
    arrays = sharding.split(ARRAYS, mesh)
    for step in (0, 40):
        ids, inputs, labels = compiled(arrays, jnp.int32(step))
        rows = sampling.batch_indices(sampler, step)
        np.testing.assert_array_equal(ids, rows)
        plain = images.transform(jnp.asarray(ARRAYS["inputs"][rows]), settings, jax.random.key(0), rows)
        np.testing.assert_allclose(inputs, plain, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(labels, noise.noisy_labels(ARRAYS["label"][rows], rows, 0.5, 10, 0))
    text = compiled.lower(arrays, jnp.int32(0)).compile().as_text()
    moved = re.findall(r"= (\w+\[[\d,]*\])\S* (?:all-|collective-|reduce-scatter)", text)
    # An array of 1800 or 225 rows among these would be the whole data set, sent in every step.
    assert moved and not any(re.search(r"\b(1800|225)\b", shape) for shape in moved)
