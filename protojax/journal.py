"""What a long run tells while it runs: a progress bar, `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm


class Journal:
    """Writes metrics of a run folder; on a resumed run, what a killed run wrote after its checkpoint is dropped."""

    def __init__(
        self,
        folder: Path,
        name: str,
        steps: int,
        resumed_at: int,
        examples_per_step: int,
        quiet: bool = False,
        writes: bool = True,
    ):
        # It imports PyTorch where that is installed, for seconds that a command without training need not wait.
        from tensorboardX import SummaryWriter

        # One process of several writes for all of them.
        self._path = folder / "metrics.jsonl" if writes else Path(os.devnull)
        _keep_until(self._path, resumed_at)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_at + 1, write_to_disk=writes)
        self._bar = tqdm(total=steps, initial=resumed_at, desc=name, unit="step", disable=quiet, dynamic_ncols=True)
        self._examples_per_step = examples_per_step
        self._started: float | None = None
        # Not the count of the bar, which stands still where the bar is hidden.
        self._steps = self._steps_before = resumed_at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()
        self._file.close()
        self._board.close()

    def advance(self, steps: int) -> None:
        """Moves the progress bar by `steps` finished steps."""
        self._bar.update(steps)
        self._steps += steps

    def start_clock(self) -> None:
        """Measures speed from now on, so that the compilation in the first steps does not count."""
        self._started, self._steps_before = time.perf_counter(), self._steps

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside does not count as training time."""
        before = time.perf_counter()
        yield
        if self._started is not None:
            self._started += time.perf_counter() - before

    @property
    def examples_per_second(self) -> float | None:
        """Queries a second since the clock was started; None where no step was finished since."""
        steps = self._steps - self._steps_before
        if self._started is None or steps <= 0:
            return None
        return steps * self._examples_per_step / (time.perf_counter() - self._started)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one line of metrics at `step`; a value that is not finite becomes null in the JSON."""
        finite = {k: float(v) if math.isfinite(v) else None for k, v in metrics.items()}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()
        # TensorBoard has no place for a value that is not there, and warns of every one.
        for key, value in ((k, v) for k, v in metrics.items() if finite[k] is not None):
            self._board.add_scalar(key.replace(".", "/"), value, step)

    def show(self, metrics: Mapping[str, float]) -> None:
        """Shows a few metrics and the examples per second beside the progress bar.

        A measure of another stage is NaN and left out; a loss that is NaN is news.
        """
        rate = self.examples_per_second
        speed = {} if rate is None else {"examples/s": f"{rate:.0f}"}
        known = {k: v for k, v in metrics.items() if k == "loss" or not math.isnan(v)}
        self._bar.set_postfix({**{k: f"{v:.4g}" for k, v in known.items()}, **speed})


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except json.JSONDecodeError:
            # A killed process can leave half a line at the end, which its successor writes again.
            break
    path.write_text("".join(kept), encoding="utf-8")
