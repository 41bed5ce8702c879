"""How a case is measured: checked first, compiled apart, then all implementations in turns within one process.

*Time* is the median over rounds. In a round every implementation makes a few calls in a row, the first of which is not
counted: threads of the one before may still spin. *Memory* of JAX is what the compiler reserves beside the arguments
(temporaries and outputs); of anything else, the growth of the peak resident memory over one call, as Linux counts it.
"""

import ctypes
import importlib
import math
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

OURS = "protojax"


class Skipped(RuntimeError):
    """A benchmark, or a peer, cannot run here; the message says what is missing."""


class Implementation(NamedTuple):
    """One way to compute a case."""

    name: str
    """Starts with `protojax` where it is ours."""
    run: Callable[[], Any]
    """Does the work once, and waits for it."""
    memory_bytes: int | None = None
    """Known beforehand; measured over a call where None."""
    compile_seconds: float | None = None
    check: Callable[[Any], bool] | None = None
    """Whether the result of `run` is that of the float64 reference."""
    goal: float | None = None
    """Of a peer: how many times longer than ours it is to take; of ours: than the first of ours, at most."""
    memory_goal: float | None = None
    """Bytes that it is to take at most."""
    extra_seconds: float = 0.0
    """Added to every call: its share of work that is done once in many."""


class Case(NamedTuple):
    """What several implementations compute."""

    benchmark: str
    name: str
    size: int
    """Candidates, for the plots."""
    implementations: Sequence[Implementation]
    """The first is the one that ratios refer to."""
    floor: float | None = None
    """Seconds below which nobody can be on this machine."""


class Budget(NamedTuple):
    """How long to measure."""

    rounds: int
    seconds: float
    """Of the calls of one implementation in one round, about."""
    slow: float = 1.0
    """An implementation whose call takes longer sits out all rounds but three."""


FULL, QUICK = Budget(rounds=15, seconds=0.1), Budget(rounds=3, seconds=0.01)


def compiled(name: str, function: Callable, *arguments: Any, **options: Any) -> Implementation:
    """A JAX function of given arrays, compiled for them."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    seconds = time.perf_counter() - start
    return Implementation(
        name,
        lambda: jax.block_until_ready(program(*arguments)),
        memory_bytes=memory_of(program),
        compile_seconds=seconds,
        **options,
    )


def memory_of(program: Any) -> int:
    """Bytes that a compiled program needs beside its arguments, donated ones not counted twice."""
    memory = program.memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes


def measure(case: Case, budget: Budget) -> list[dict[str, Any]]:
    """Rows of a case, one an implementation."""
    exact = [one.check(one.run()) if one.check else None for one in case.implementations]
    memory = [_peak(one.run) if one.memory_bytes is None else one.memory_bytes for one in case.implementations]
    times = [
        [seconds + one.extra_seconds for seconds in taken]
        for one, taken in zip(case.implementations, in_turns(case.implementations, budget, _time), strict=True)
    ]
    medians = [float(np.median(taken)) for taken in times]
    rows = []
    for one, seconds, taken, size, right in zip(case.implementations, medians, times, memory, exact, strict=True):
        low, high = np.percentile(taken, [25, 75])
        rows.append(
            {
                "benchmark": case.benchmark,
                "case": case.name,
                "size": case.size,
                "implementation": one.name,
                "seconds": seconds,
                "fastest_seconds": min(taken),
                "spread": (float(high) - float(low)) / seconds,
                "compile_seconds": one.compile_seconds,
                "memory_bytes": size,
                "floor_seconds": case.floor,
                "ratio_to_ours": seconds / medians[0],
                "ratio_to_floor": seconds / case.floor if case.floor else None,
                "exact": right,
                "goal": one.goal,
                "memory_goal": one.memory_goal,
            }
        )
    return rows


def in_turns(
    implementations: Sequence[Implementation], budget: Budget, observe: Callable[[Callable[[], Any], int], list[Any]]
) -> list[list[Any]]:
    """What `observe(run, calls)` returns of every implementation, an entry a call, over all rounds."""
    once = [_time(one.run, 1)[0] for one in implementations]
    seen: list[list[Any]] = [[] for _ in implementations]
    for turn in range(budget.rounds):
        for one, first, found in zip(implementations, once, seen, strict=True):
            if first > budget.slow and turn >= 3:
                continue
            calls = min(50, max(1, math.ceil(budget.seconds / first)))
            if first < budget.slow:
                one.run()
            found += observe(one.run, calls)
    return seen


def header() -> dict[str, Any]:
    """The machine and the versions."""
    versions = {"python": platform.python_version()}
    for package in (
        "jax",
        "jaxlib",
        "numpy",
        "flax",
        "torch",
        "entmax",
        "jaxopt",
        "faiss-cpu",
        "vector-quantize-pytorch",
    ):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "cpu": _cpu(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "threads": threads(),
        "versions": versions,
    }


def threads() -> int:
    """Threads that every library may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch() -> Any:
    """PyTorch, with as many threads as JAX.

    Raises:
      Skipped: it is not installed.
    """
    library = peer("torch")
    library.set_num_threads(threads())
    return library


def peer(name: str) -> Any:
    """A peer's module.

    Raises:
      Skipped: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skipped(f"{name} is not installed; pip install 'protojax[bench]' brings the peers") from error


def with_peers(ours: Sequence[Implementation], *peers: Callable[[], Sequence[Implementation]]) -> list[Implementation]:
    """Ours, and those of the peers that are installed; says which are not."""
    found = list(ours)
    for make in peers:
        try:
            found += make()
        except Skipped as reason:
            print(f"  skipped: {reason}")
    return found


def _time(run: Callable[[], Any], calls: int) -> list[float]:
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return taken


def _peak(run: Callable[[], Any]) -> int | None:
    """Growth of the peak resident memory over one call; None where the system does not count it."""
    clear = Path("/proc/self/clear_refs")
    try:
        # What was freed goes back first, or the call would be served from it unseen.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        clear.write_text("5")
        before = _status("VmRSS")
        result = run()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):
        result = None
        return None
    finally:
        del result


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()
