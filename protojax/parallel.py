"""The two ways to run one step on several devices: `jit` over a mesh of global arrays, and a thin `pmap` wrapper.

Both give the same numbers. Under `jit` arrays are global and XLA inserts the communication; under `pmap` the step sees
the local part of a batch, and methods communicate over the mapped axis by name.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from protojax import sharding
from protojax.config import TrainSettings
from protojax.sharding import AXIS


class Parallel(NamedTuple):
    """How a function `(state, data) -> (state, metrics)` is compiled and fed; the given state is consumed."""

    axis_name: str | None
    """The mapped axis, or None where arrays are global."""
    compile: Callable[[Callable, bool], Callable]
    """`compile(function, resident)`: `resident` tells that data are whole arrays, not batches `[steps, batch, ...]`."""
    place_state: Callable[[Any], Any]
    """A state as the compiled function takes it."""
    fetch: Callable[[Any], Any]
    """What the compiled function returned, as plain global arrays."""
    place_arrays: Callable[[Any], Any]
    """Resident arrays `[examples, ...]`, on the devices."""
    place_batches: Callable[[Any], Any]
    """Batches `[steps, local batch, ...]` of this process, on the devices."""
    own_indices: Callable[[jax.Array], jax.Array]
    """Of the indices of a global batch, those that this device reads."""
    own_batch: Callable[[Any], Any]
    """Marks a batch as split over the devices."""


def check(settings: TrainSettings, mesh: Mesh) -> None:
    """Refuses settings that these devices cannot train with.

    Raises:
      ValueError: says which setting, and what would do.
    """
    for key in ("batch_size", "candidate_count"):
        count = getattr(settings, key)
        if count % mesh.size:
            above = -(-count // mesh.size) * mesh.size
            raise ValueError(
                f"train.{key} = {count} does not divide among {mesh.size} devices; "
                f"choose a multiple of {mesh.size}, such as {above}"
            )
    if settings.parallel == "pmap" and jax.process_count() > 1:
        raise ValueError(
            f"train.parallel = 'pmap' is for one process, and this run has {jax.process_count()}; choose 'jit'"
        )


def choose(settings: TrainSettings, mesh: Mesh) -> Parallel:
    """The way that the settings name.

    Raises:
      ValueError: as `check`.
    """
    check(settings, mesh)
    return with_jit(mesh) if settings.parallel == "jit" else with_pmap(mesh)


def with_jit(mesh: Mesh) -> Parallel:
    """Global arrays on a mesh."""
    replicated, split = sharding.replicated(mesh), sharding.along_data(mesh)
    stacked = sharding.along_data(mesh, axis=1)

    def compile(function: Callable, resident: bool) -> Callable:
        return jax.jit(
            function,
            donate_argnums=0,
            in_shardings=(replicated, split if resident else stacked),
            out_shardings=replicated,
        )

    return Parallel(
        axis_name=None,
        compile=compile,
        place_state=lambda state: jax.device_put(state, replicated),
        fetch=lambda x: x,
        place_arrays=partial(sharding.split, mesh=mesh),
        place_batches=partial(sharding.from_local, mesh=mesh, axis=1),
        own_indices=lambda indices: indices,
        own_batch=lambda batch: lax.with_sharding_constraint(batch, split),
    )


def with_pmap(mesh: Mesh) -> Parallel:
    """One program a device, each holding the state and the resident arrays whole; for one process."""
    count = mesh.size
    copy = jax.pmap(lambda x, device: x, in_axes=(None, 0))

    def spread(x: Any) -> Any:
        # One argument has to be mapped.
        return copy(x, np.arange(count))

    def split_batches(x: Any) -> Any:
        steps, batch = x.shape[:2]
        return x.reshape(steps, count, batch // count, *x.shape[2:]).swapaxes(0, 1)

    def own_indices(indices: jax.Array) -> jax.Array:
        local = indices.shape[0] // count
        return lax.dynamic_slice_in_dim(indices, lax.axis_index(AXIS) * local, local)

    return Parallel(
        axis_name=AXIS,
        compile=lambda function, resident: jax.pmap(function, axis_name=AXIS, donate_argnums=0),
        place_state=spread,
        fetch=partial(jax.tree.map, lambda x: x[0]),
        place_arrays=spread,
        place_batches=partial(jax.tree.map, split_batches),
        own_indices=own_indices,
        own_batch=lambda batch: batch,
    )
