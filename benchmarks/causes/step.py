"""The dense training step and PyTorch's in a process of these two alone: each by itself first, then in turns."""

from functools import partial
from typing import Any

from benchmarks import measure, trained, training_step
from benchmarks.causes import usage
from benchmarks.measure import OURS
from protojax.data import resident

CANDIDATES = 1024


def rows(options: Any) -> list[dict[str, Any]]:
    """One row an implementation and order.

    Raises:
      Skipped: there is no trained run, whose state the step goes on from.
    """
    if options.run is None and not options.quick:
        raise measure.Skipped("the step goes on from a trained state: give --run FOLDER of a training run")
    start = trained.load(options)
    arrays = resident.load(start.dataset.train, progress=False)
    size = 16 if options.quick else CANDIDATES
    ours = training_step.ours(f"{OURS}, dense", start, arrays, size, "sampled")
    both = measure.with_peers([ours], partial(training_step.pytorch, start, size, None))
    orders = {"one after the other": [usage.alone(one.run, 1 if options.quick else 5) for one in both]}
    if len(both) > 1:
        budget = measure.QUICK if options.quick else measure.FULL
        orders["in turns"] = measure.in_turns(both, budget, usage.of_calls)
    return [
        {"order": order, "implementation": one.name, **usage.row(samples)}
        for order, seen in orders.items()
        for one, samples in zip(both, seen, strict=True)
    ]
