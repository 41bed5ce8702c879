"""The nearest code by itself and right after vector-quantize-pytorch: whether the turn of a peer slows the next one.

In the benchmark, a call that takes longer than a second has none before it that is not counted (`measure.in_turns`), so
that what a peer leaves behind falls into it. Here calls are told apart by how many came before them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp

from benchmarks import measure, quantize
from benchmarks.causes import usage

SIZES = (12544, 768, 2000), (1024, 768, 128000)
"""Vectors, features, codes."""

_CALLS = 3
"""Of ours after each of the peer: the first meets what the peer left, the last should not."""


def rows(options: Any) -> list[dict[str, Any]]:
    """One row a case and what ran before; all that is measured alone comes before any peer is loaded."""
    rounds = 2 if options.quick else 9
    sizes = quantize.QUICK[:1] if options.quick else SIZES
    seen: dict[tuple[str, str], list[usage.Usage]] = {}
    turns = []
    for vectors, features, codes in sizes:
        name = f"{vectors} vectors of {features}, K = {codes}"
        problem = quantize.drawn(vectors, features, codes)
        given = jnp.asarray(problem.vectors), jnp.asarray(problem.codes)
        for what, function in (("places", quantize.places), ("places and codes", quantize.with_codes)):
            ours = measure.compiled(what, function, *given)
            seen[name, f"{what}, alone"] = usage.alone(ours.run, rounds)
        # The last one is what the peer computes.
        turns.append((name, ours, partial(quantize.pytorch, problem, None)))
    for name, ours, peer in turns:
        for one in measure.with_peers([ours], peer)[1:]:
            seen |= {(name, what): samples for what, samples in _in_turns(one, ours.run, rounds).items()}
            seen[name, "places and codes, alone again"] = usage.alone(ours.run, rounds)
    return [
        {"case": name, "what": what, **usage.row(samples)}
        for name, *_ in turns
        for (case, what), samples in seen.items()
        if case == name
    ]


def _in_turns(peer: measure.Implementation, ours: Callable[[], Any], rounds: int) -> dict[str, list[usage.Usage]]:
    peer.run()
    seen: dict[str, list[usage.Usage]] = {peer.name: []}
    for _ in range(rounds):
        seen[peer.name] += usage.of_calls(peer.run, 1)
        for turn, sample in enumerate(usage.of_calls(ours, _CALLS), start=1):
            seen.setdefault(f"places and codes, call {turn} after it", []).append(sample)
    return seen
