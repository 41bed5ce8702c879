"""The training loop: resumes, measures, validates, saves, and stops when asked to or when numbers go bad."""

import contextlib
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax import checkpoint, sharding, step
from protojax.config import Settings
from protojax.data import DataSet, sampling
from protojax.journal import Journal
from protojax.methods import Method, Variables
from protojax.step import TrainState


class NonFiniteError(RuntimeError):
    """Several steps in a row had a loss or gradient that is not finite."""


class Interrupted(RuntimeError):
    """The run was asked to stop (SIGTERM), saved its state and can be resumed."""


class Trained(NamedTuple):
    """The end of a run."""

    method: Method
    """The method as it was trained, whose compiled functions serve further."""
    state: TrainState
    steps_run: int
    """Steps of this process; fewer than `state.step` where the run was resumed."""
    examples_per_second: float | None
    """Queries a second, without compilation and evaluations; None where no step followed the first dispatch."""


def fit(
    settings: Settings,
    dataset: DataSet,
    folder: Path,
    validate: Callable[[Method, Variables], dict[str, float]],
    quiet: bool = False,
) -> Trained:
    """Trains an experiment in its run folder, from the newest checkpoint there if there is one.

    Args:
      settings: the experiment.
      dataset: its data.
      folder: the run folder.
      validate: scores variables on the validation split; its `score` ranks checkpoints.
      quiet: shows no progress bar.

    Raises:
      NonFiniteError: `max_bad_steps` steps in a row had a loss or gradient that is not finite.
      Interrupted: SIGTERM arrived; the state is saved.
      CheckpointError: the newest checkpoint is damaged or was trained on other data.
    """
    train = settings.train
    loop = step.compile(settings, dataset)
    with checkpoint.manager(folder / "checkpoints", train.keep) as checkpoints:
        state, done = step.fresh(settings, dataset), checkpoints.latest_step() or 0
        if done:
            state = _restored(checkpoints, done, state, settings, dataset)
        first = jax.process_index() == 0
        with (
            Journal(folder, settings.name, train.steps, done, train.batch_size, quiet or not first, first) as journal,
            _Stop() as stop,
            contextlib.closing(loop.data(done)) as data,
        ):
            history = _History(train.log_every, train.max_bad_steps, journal, partial(_ids, settings, dataset))
            state, start = loop.devices.place_state(state), done
            while done < train.steps:
                inputs = next(data)
                if loop.refresh is not None and done % train.refresh_every == 0:
                    state, measured = loop.refresh(state, inputs)
                    history.note(measured)
                state, metrics = loop.dispatch(state, inputs)
                done += loop.steps
                history.add(done, loop.devices.fetch(metrics))
                if done - start == loop.steps:
                    history.flush()
                    journal.start_clock()
                stopping = stop.agreed(done % train.log_every == 0)
                validating = _falls(done, train.evaluate_every, train.steps)
                if stopping or validating or _falls(done, train.checkpoint_every, train.steps):
                    history.flush()
                    with journal.paused():
                        current, score = loop.devices.fetch(state), None
                        if validating and dataset.validation is not None:
                            scores = validate(loop.method, current.variables)
                            journal.write(done, {f"validation.{k}": v for k, v in scores.items()})
                            score = scores["score"]
                        position = {**_identity(settings, dataset), "step": done}
                        checkpoint.save(checkpoints, done, current, position, score)
                if stopping and done < train.steps:
                    checkpoint.finish(checkpoints)
                    raise Interrupted(f"stopped at step {done}; run the same command again to resume")
        return Trained(loop.method, loop.devices.fetch(state), done - start, journal.examples_per_second)


def restore(settings: Settings, dataset: DataSet, folder: Path) -> TrainState:
    """The trained state that `evaluate.checkpoint` names.

    Raises:
      CheckpointError: there is none, it is damaged, or it was trained on other data.
    """
    best = settings.evaluate.checkpoint == "best"
    with checkpoint.manager(folder / "checkpoints", settings.train.keep, read_only=True) as checkpoints:
        at = checkpoints.best_step() if best else checkpoints.latest_step()
        if at is None:
            raise checkpoint.CheckpointError(
                f"{folder} has no {'best' if best else 'saved'} checkpoint; train it first"
            )
        return _restored(checkpoints, at, step.fresh(settings, dataset), settings, dataset)


def _restored(checkpoints: Any, at: int, like: TrainState, settings: Settings, dataset: DataSet) -> TrainState:
    like = sharding.everywhere(like)
    state, position = checkpoint.restore(checkpoints, at, like)
    for key, value in _identity(settings, dataset).items():
        if position[key] != value:
            raise checkpoint.CheckpointError(
                f"{checkpoints.directory}: trained with {key} {position[key]!r}, but this experiment has {value!r}; "
                "use another --workdir, or --overwrite"
            )
    return state


def _identity(settings: Settings, dataset: DataSet) -> dict[str, Any]:
    """What, with the step, determines every further batch."""
    return {"fingerprint": dataset.info.fingerprint, "seed": settings.train.seed}


def _falls(done: int, every: int, last: int) -> bool:
    return done == last or bool(every) and done % every == 0


class _History:
    """Metrics of past dispatches, fetched one dispatch late so that the device never waits for the host."""

    def __init__(self, every: int, max_bad: int, journal: Journal, ids: Callable[[int], list[int]]):
        self._every, self._max_bad, self._journal, self._ids = every, max_bad, journal, ids
        self._pending: tuple[int, Any] | None = None
        self._rows: list[dict[str, np.ndarray]] = []
        self._noted: dict[str, float] = {}

    def note(self, measured: dict[str, float]) -> None:
        """Takes what was measured between two dispatches; the newest of it is written with the next metrics."""
        self._noted |= measured

    def add(self, step: int, metrics: Any) -> None:
        """Takes the metrics `[steps]` of the dispatch that ended at `step`, and reads those of the one before."""
        before, self._pending = self._pending, (step, metrics)
        if before is not None:
            self._read(*before)

    def flush(self) -> None:
        """Reads what is pending."""
        if self._pending is not None:
            self._read(*self._pending)
            self._pending = None

    def _read(self, step: int, metrics: Any) -> None:
        row = {k: np.asarray(v) for k, v in jax.device_get(metrics).items()}
        bad = row.pop("bad_in_row")
        self._journal.advance(len(bad))
        if bad.max() >= self._max_bad:
            failed = step - len(bad) + int(np.argmax(bad >= self._max_bad))
            raise NonFiniteError(
                f"loss or gradient was not finite {self._max_bad} steps in a row, the last at step {failed} with "
                f"ids {self._ids(failed)}; parameters are those before; try a lower optimizer.learning_rate"
            )
        self._rows.append(row)
        if step % self._every == 0:
            mean = {k: float(np.mean(np.concatenate([r[k] for r in self._rows]))) for k in row}
            self._journal.write(step, mean | self._noted)
            self._noted.clear()
            self._journal.show({k: v for k, v in mean.items() if k == "loss" or k.startswith("accuracy")})
            self._rows.clear()


class _Stop:
    """Notes SIGTERM while it is entered, and lets all processes of a run stop at the same step."""

    def __init__(self) -> None:
        self._asked = False

    def __enter__(self) -> "_Stop":
        # Python allows signal handlers in the main thread only; elsewhere the caller keeps its own.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: Any) -> None:
        self._asked = True

    def agreed(self, common: bool) -> bool:
        """Whether to stop now; several processes ask one another at steps that are `common` to them."""
        if jax.process_count() == 1:
            return self._asked
        return common and sharding.in_any_process(self._asked)


def _ids(settings: Settings, dataset: DataSet, at: int) -> list[int]:
    indices = np.asarray(sampling.batch_indices(step.sampler_of(settings, dataset), np.uint32(at)))
    return [int(dataset.train.ids[i % len(dataset.train)]) for i in indices]
