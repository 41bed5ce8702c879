"""Attention over candidates that are split over the devices of a mesh, and stay there.

Every device treats its own candidates as `streamed` does. What crosses devices for a query is the list of its best
candidates on each, sums, and decisions of the same size: nothing that grows with the database.
"""

from collections.abc import Callable

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from protojax.ops import gradient, streamed
from protojax.ops.clusters import ClusterIndex
from protojax.ops.gradient import Cotangents
from protojax.ops.listed import Plan, Solved
from protojax.ops.tiles import Candidates, Queries


def mesh_of(keys: jax.Array) -> Mesh | None:
    """The mesh over whose first axis the rows of concrete keys are split, if they are."""
    if isinstance(keys, jax.core.Tracer) or not isinstance(keys.sharding, NamedSharding):
        return None
    mesh, spec = keys.sharding.mesh, keys.sharding.spec
    first = spec[0] if len(spec) else None
    alone = first == mesh.axis_names[0] or first == (mesh.axis_names[0],)
    return mesh if alone and mesh.shape[mesh.axis_names[0]] > 1 else None


def check(mesh: Mesh, candidates: int, index: ClusterIndex | None) -> None:
    """Refuses what does not divide evenly among the devices.

    Raises:
      ValueError: naming the sizes.
    """
    devices = mesh.shape[mesh.axis_names[0]]
    if candidates % devices:
        raise ValueError(
            f"{candidates} candidates do not divide evenly among {devices} devices: fill up with places of id -1"
        )
    if index is not None and index.radii.shape[0] % devices:
        raise ValueError(
            f"the {index.radii.shape[0]} blocks of the index do not divide evenly among {devices} devices: build it "
            "with as many rows that they do"
        )


def solve(candidates: Candidates, queries: Queries, index: ClusterIndex | None, plan: Plan, mesh: Mesh) -> Solved:
    """As `streamed.solve`; queries and answers are on all devices."""

    def own(candidates: Candidates, queries: Queries, index: ClusterIndex | None) -> Solved:
        return streamed.solve(_placed(candidates, plan), queries, index, plan)

    split, everywhere = PartitionSpec(plan.axis), PartitionSpec()
    return _over(mesh, own, (split, everywhere, split), everywhere)(_unplaced(candidates), queries, index)


def pull(
    candidates: Candidates, queries: Queries, solved: Solved, given: Cotangents, plan: Plan, mesh: Mesh
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As `gradient.pull`; the cotangents of keys and values lie where these do."""

    def own(candidates: Candidates, *rest) -> tuple[jax.Array, jax.Array, jax.Array]:
        return gradient.pull(_placed(candidates, plan), *rest, plan)

    split, everywhere = PartitionSpec(plan.axis), PartitionSpec()
    specs = (split, everywhere, everywhere, everywhere), (everywhere, split, split)
    return _over(mesh, own, *specs)(_unplaced(candidates), queries, solved, given)


def _over(mesh: Mesh, f: Callable, arguments: tuple, results: tuple | PartitionSpec) -> Callable:
    # What is gathered from all devices is the same on all, which the check of replication does not see.
    return jax.shard_map(f, mesh=mesh, in_specs=arguments, out_specs=results, check_vma=False)


def _unplaced(candidates: Candidates) -> Candidates:
    return candidates._replace(first=None)


def _placed(candidates: Candidates, plan: Plan) -> Candidates:
    return candidates._replace(first=lax.axis_index(plan.axis) * candidates.keys.shape[0])
