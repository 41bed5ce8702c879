"""The devices as a mesh, arrays on it, and runs of several processes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
"""The only axis of the mesh: examples are split along it."""


class ProcessError(RuntimeError):
    """Another process of the run failed, so that this one cannot go on."""


def start_processes(coordinator: str, processes: int, index: int) -> None:
    """Joins the other processes of a run; to be called before anything else uses a device.

    Args:
      coordinator: `host:port` of process 0, the same for all.
      processes: how many there are.
      index: which one this is, from 0.

    Raises:
      ValueError: an impossible address, number or index.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator {coordinator!r}: give HOST:PORT of process 0, such as 10.0.0.1:1234")
    if not 0 <= index < processes:
        raise ValueError(f"--process-index {index} of --processes {processes}: indices go from 0 to processes - 1")
    # On CPU, processes match their collectives by order, and two computations under way at once can swap it.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # Processes end together; where one fails alone, the others are ended after this time.
    jax.distributed.initialize(coordinator, processes, index, shutdown_timeout_seconds=60)


def in_any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What every process does on its own (check, read, write), and none leaves before the others have done it.

    Nothing inside may compute with arrays of several processes.

    Raises:
      ProcessError: it failed in another process, which raises what really happened.
    """
    failed = True
    try:
        yield
        failed = False
    finally:
        # Asked also on the way out with an error: otherwise the others would wait for this process forever.
        anywhere = in_any_process(failed)
    if anywhere:
        raise ProcessError("another process of this run failed; its message says why")


def mesh() -> Mesh:
    """All devices of all processes on the axis `data`, those of process 0 first: process p holds the p-th rows."""
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    # Explicit axes, the default of jax.make_mesh from jax 0.11 on, would put shardings into types.
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def along_data(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Every device holds an equal part of one axis of the array."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def whole_batch(size: int) -> int:
    """A batch of `size` examples or a few more, so that all devices get as many."""
    devices = mesh().size
    return -(-size // devices) * devices


def everywhere(tree: Any) -> Any:
    """Places arrays that every process holds whole on all devices."""
    return jax.device_put(tree, replicated(mesh()))


def split(tree: Any, mesh: Mesh) -> Any:
    """Places arrays that every process holds whole on the mesh, split along their first axis.

    Args:
      tree: NumPy arrays `[n, ...]`.
      mesh: the mesh.

    Returns:
      Arrays `[m, ...]`, where m is n rounded up to a multiple of the devices; the rows from n on are zeros.
    """

    def place(x: np.ndarray) -> jax.Array:
        shape = (-(-x.shape[0] // mesh.size) * mesh.size, *x.shape[1:])

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(shape[0])
            rows = x[start:stop]
            missing = stop - start - len(rows)
            return np.pad(rows, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) if missing else rows

        return jax.make_array_from_callback(shape, along_data(mesh), part)

    return jax.tree.map(place, tree)


def from_local(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Makes global arrays, split along one axis, of which every process gives its own part.

    Args:
      tree: NumPy arrays; process p gives the p-th part of `axis`.
      mesh: the mesh.
      axis: the axis that is split.

    Raises:
      ValueError: the parts do not divide evenly among the devices of the process.
    """
    sharding = along_data(mesh, axis)
    local = len(mesh.local_devices)

    def place(x: np.ndarray) -> jax.Array:
        if x.shape[axis] % local:
            raise ValueError(
                f"{x.shape[axis]} rows of a process do not divide evenly among its {local} devices: make "
                "train.batch_size and train.candidate_count multiples of the number of devices"
            )
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(place, tree)


def to_host(tree: Any) -> Any:
    """Whole NumPy arrays of global ones; where they are split over processes, all processes must call it."""

    def fetch(x: jax.Array) -> np.ndarray:
        if x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(fetch, tree)
