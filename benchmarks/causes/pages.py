"""Forward and backward of sparsemax in a process of its own, with the allocator as it is and told to keep its pages."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure, sparsemax
from benchmarks.causes import usage

SIZE = 32768

KEEP = {"MALLOC_TRIM_THRESHOLD_": str(8 << 30), "MALLOC_MMAP_THRESHOLD_": str(8 << 30)}
"""The environment in which glibc returns nothing to the system; read once, when a process starts."""


def rows(options: Any) -> list[dict[str, Any]]:
    """One row an implementation here, and one in a process with `KEEP`, unless this is such a process."""
    kept = KEEP.items() <= os.environ.items()
    found = _measured(options, "keeps its pages" if kept else "as it is")
    return found if kept else found + _in_a_process_that_keeps(options)


def _measured(options: Any, allocator: str) -> list[dict[str, Any]]:
    scores, cotangent = sparsemax.drawn(256 if options.quick else SIZE)
    expected, _ = sparsemax.reference(scores)
    case = sparsemax.forward_and_backward(scores, cotangent, expected, None)
    budget = measure.QUICK if options.quick else measure.FULL
    seen = measure.in_turns(case.implementations, budget, usage.of_calls)
    return [
        {"case": case.name, "allocator": allocator, "implementation": one.name, **usage.row(samples)}
        for one, samples in zip(case.implementations, seen, strict=True)
    ]


def _in_a_process_that_keeps(options: Any) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, "-m", "benchmarks.causes", "pages", "--json", str(file)]
        subprocess.run(
            command + ["--quick"] * options.quick,
            env=os.environ | KEEP,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.DEVNULL,
            check=True,
        )
        return json.loads(file.read_text())["rows"]
