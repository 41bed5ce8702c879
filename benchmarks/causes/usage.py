"""What a call costs beside its time: processor time, and pages of memory that the system has to provide."""

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np


class Usage(NamedTuple):
    """Of one call, over all threads of the process."""

    seconds: float
    user_seconds: float
    """Threads that wait spinning have their part in it."""
    system_seconds: float
    faults: int
    """Pages touched for the first time since the allocator got them from the system (minor page faults)."""


def of_calls(run: Callable[[], Any], calls: int) -> list[Usage]:
    """One entry a call."""
    seen = []
    for _ in range(calls):
        before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        run()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        used = (getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime", "ru_minflt"))
        seen.append(Usage(seconds, *used))
    return seen


def alone(run: Callable[[], Any], calls: int) -> list[Usage]:
    """Calls in a row after one that is not counted."""
    run()
    return of_calls(run, calls)


def row(samples: Sequence[Usage]) -> dict[str, Any]:
    """Time as a median and its range; the rest as means, since the system counts processor time in coarse ticks."""
    times = 1e3 * np.array([one.seconds for one in samples])
    _, user, system, faults = np.mean(samples, axis=0)
    return {
        "calls": len(samples),
        "ms": float(np.median(times)),
        "fastest ms": float(times.min()),
        "slowest ms": float(times.max()),
        "user ms": 1e3 * float(user),
        "system ms": 1e3 * float(system),
        "page faults": float(faults),
    }
