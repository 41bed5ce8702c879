"""One step of training: the state, the step as a pure function, and its compilation for an experiment."""

import contextlib
import itertools
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh

from protojax import methods, optimizer, parallel, retrieval, sharding
from protojax.config import FrozenSettings, Settings
from protojax.data import DataSet, augment, images, noise, resident, sampling, streamed
from protojax.methods import Batch, Method, Variables

KEYS = "retrieved_keys"
"""Where a state keeps the keys of the training split."""


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: jax.Array
    """int32: steps done, which is also the position in the data."""
    params: Any
    statistics: Variables
    """Collections that the network updates itself, such as `batch_stats`. With `train.candidates = "retrieved"` also
    `KEYS`, float32 `[examples, key_size]`: those of the training split since the last refresh, which together with the
    step determine every further batch."""
    opt_state: optax.OptState
    bad_in_row: jax.Array
    """int32: steps since the last one with a finite loss and gradient."""
    bad_total: jax.Array
    """int32: steps whose loss or gradient was not finite, and which therefore changed nothing."""

    @property
    def variables(self) -> Variables:
        """The variables that the functions of a method take."""
        return {"params": self.params, **{k: v for k, v in self.statistics.items() if k != KEYS}}


def create(method: Method, transform: optax.GradientTransformation, key: jax.Array, batch: Batch) -> TrainState:
    """A fresh state."""
    variables = dict(method.init(key, batch))
    params = variables.pop("params")
    # Three buffers, because the step consumes its state and no buffer can be consumed twice.
    steps, bad_in_row, bad_total = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(steps, params, variables, transform.init(params), bad_in_row, bad_total)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    method: Method,
    transform: optax.GradientTransformation,
    key: jax.Array,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step of gradient descent; a loss or gradient that is not finite leaves parameters and statistics untouched.

    Args:
      state: the state; `state.step` also selects the randomness.
      batch: prepared examples `[batch, ...]`, the local part of them under `pmap`.
      method: the method to train.
      transform: the optimiser.
      key: key of the run.
      axis_name: the mapped axis under `pmap`.
    """
    step_key = jax.random.fold_in(key, state.step)

    def objective(params: Any) -> tuple[jax.Array, tuple[Variables, dict[str, jax.Array]]]:
        return method.loss({**state.variables, "params": params}, batch, step_key, state.step)

    (loss, (statistics, metrics)), gradient = jax.value_and_grad(objective, has_aux=True)(state.params)
    metrics = {"loss": loss, **metrics}
    if axis_name is not None:
        metrics, gradient = lax.pmean((metrics, gradient), axis_name)
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    updates, opt_state = transform.update(gradient, state.opt_state, state.params)
    changed = (optax.apply_updates(state.params, updates), {**state.statistics, **statistics}, opt_state)
    params, statistics, opt_state = jax.tree.map(
        partial(jnp.where, finite), changed, (state.params, state.statistics, state.opt_state)
    )
    if method.revise is not None:
        revise_key = jax.random.fold_in(step_key, 1)
        statistics = method.revise({**statistics, "params": params}, batch, revise_key, state.step)
        params = statistics.pop("params")
    bad_in_row = jnp.where(finite, 0, state.bad_in_row + 1)
    bad_total = state.bad_total + jnp.where(finite, 0, 1)
    metrics |= {"gradient_norm": norm, "bad_in_row": bad_in_row}
    return TrainState(state.step + 1, params, statistics, opt_state, bad_in_row, bad_total), metrics


def prepare(
    batch: Batch, key: jax.Array, *, settings: Settings, classes: int, kind: str, axis_name: str | None = None
) -> Batch:
    """Augments the images of a batch and of its candidates, and adds noise to labels, mixes or softens them."""
    data, mix = settings.data, settings.data.mix

    def prepared(part: Batch, part_key: jax.Array | None) -> Batch:
        inputs, label = part["inputs"], part["label"]
        if kind == "image":
            inputs = images.transform(inputs, data.augment, part_key, part["id"])
        elif kind == "features":
            inputs = inputs.astype(jnp.float32)
        if data.label_noise:
            label = noise.noisy_labels(label, part["id"], data.label_noise, classes, settings.train.seed)
        return {"id": part["id"], "inputs": inputs, "label": label}

    query_key, candidate_key = jax.random.split(key)
    result = prepared(batch, query_key)
    if "candidates" in batch:
        result["candidates"] = prepared(batch["candidates"], candidate_key if data.augment.candidates else None)
    if mix.wanted or settings.train.label_smoothing:
        target = augment.smooth_labels(result["label"], classes, settings.train.label_smoothing)
        if mix.wanted:
            # Another stream than those of the queries and the candidates.
            mix_key, how = jax.random.fold_in(key, 2), (mix.mixup, mix.cutmix, mix.cutmix_share)
            result["inputs"], target = augment.mix(mix_key, result["inputs"], target, result["id"], *how, axis_name)
            result["label"] = target.argmax(axis=-1).astype(jnp.int32)
        result["target"] = target
    return result


def sampler_of(settings: Settings, dataset: DataSet) -> sampling.Sampler:
    """Which examples every step reads; raises ValueError where the training split has too few."""
    train = settings.train
    return sampling.sampler(
        len(dataset.train),
        train.batch_size,
        train.candidate_count,
        train.seed,
        labels=dataset.train.labels if settings.data.class_shares else None,
        class_shares=settings.data.class_shares,
        views=views_of(settings),
    )


def views_of(settings: Settings) -> int:
    """Augmented views of every training example that the data hold beside it."""
    return settings.encoder.views if isinstance(settings.encoder, FrozenSettings) else 0


def fresh(settings: Settings, dataset: DataSet) -> TrainState:
    """The state of an experiment before its first step, the same on any devices."""
    info = dataset.info
    # Parameters depend on shapes alone, so one example is enough.
    batch = {"inputs": jnp.asarray(dataset.train[0]["inputs"])[None]}
    batch["inputs"] = images.plain(batch["inputs"], info.kind, settings.data.augment)
    method = methods.build(settings, len(info.label_names))
    transform = optimizer.build(settings.optimizer, settings.train.steps, method.stages)
    state = create(method._replace(init=jax.jit(method.init)), transform, _keys(settings)[0], batch)
    if settings.train.candidates == "retrieved":
        state.statistics[KEYS] = retrieval.blank_keys(len(dataset.train), settings)
    return state


def _keys(settings: Settings) -> jax.Array:
    """The keys `[3]` of an experiment: for its parameters, its batches and its steps."""
    return jax.random.split(jax.random.key(settings.train.seed), 3)


class Loop(NamedTuple):
    """The compiled training of one experiment."""

    method: Method
    steps: int
    """Steps of one call of `dispatch`."""
    dispatch: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]]
    """`(state, data)` -> `(state, metrics [steps])`; the given state is consumed."""
    data: Callable[[int], Generator[Any, None, None]]
    """What `dispatch` reads, from a step on; to be closed."""
    devices: parallel.Parallel
    refresh: Callable[[Any, Any], tuple[Any, dict[str, float]]] | None
    """`(state, data)` -> the state with fresh keys, and what the old ones had come to; to be called before every
    `train.refresh_every`-th step, from the first on. None where nothing needs refreshing."""


def compile(settings: Settings, dataset: DataSet) -> Loop:
    """Puts method, optimiser, data and devices of an experiment together.

    Raises:
      ValueError: the settings do not fit the data or the devices.
    """
    train, info = settings.train, dataset.info
    mesh = sharding.mesh()
    devices = parallel.choose(train, mesh)
    method = methods.build(settings, len(info.label_names), devices.axis_name, mesh.size)
    if (settings.data.mix.wanted or train.label_smoothing) and not method.soft_labels:
        raise ValueError(
            f"data.mix and train.label_smoothing make soft labels, which the loss of {settings.method.kind} does not "
            "read: leave them out"
        )
    transform = optimizer.build(settings.optimizer, train.steps, method.stages)
    sampler = sampler_of(settings, dataset)
    _, feed_key, step_key = _keys(settings)
    is_resident = settings.data.feeding == "resident"
    steps = train.steps_per_dispatch

    retriever = None
    if train.candidates == "retrieved":
        plain = partial(images.plain, kind=info.kind, settings=settings.data.augment)
        retriever = retrieval.build(method, settings, len(dataset.train), plain, mesh)

    def prepared(batch: Batch, step: jax.Array) -> Batch:
        batch_key = jax.random.fold_in(feed_key, step)
        classes, axis = len(info.label_names), devices.axis_name
        return prepare(batch, batch_key, settings=settings, classes=classes, kind=info.kind, axis_name=axis)

    def one_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        batch = prepared(batch, state.step)
        return train_step(state, batch, method=method, transform=transform, key=step_key, axis_name=devices.axis_name)

    def take(arrays: Any, indices: jax.Array) -> Batch:
        return devices.own_batch(resident.take(arrays, devices.own_indices(indices)))

    def drawn(state: TrainState, arrays: Any) -> Batch:
        batch = take(arrays, sampling.batch_indices(sampler, state.step))
        if retriever is not None:
            chosen = retriever.choose(state.variables, state.statistics[KEYS], arrays, prepared(batch, state.step))
            batch["candidates"] = take(arrays, chosen)
        elif sampler.candidate_count:
            batch["candidates"] = take(arrays, sampling.candidate_indices(sampler, state.step))
        return batch

    def dispatch(state: TrainState, data: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        def body(state: TrainState, batch: Batch | None) -> tuple[TrainState, dict[str, jax.Array]]:
            return one_step(state, drawn(state, data) if is_resident else batch)

        batches = None if is_resident else data
        if steps > 1:
            return lax.scan(body, state, batches, length=steps)
        state, metrics = body(state, jax.tree.map(lambda x: x[0], batches))
        return state, jax.tree.map(lambda x: x[None], metrics)

    def queries(state: TrainState, arrays: Any) -> Batch:
        return prepared(take(arrays, sampling.batch_indices(sampler, state.step)), state.step)

    feed = _resident if is_resident else partial(_streamed, sampler=sampler, steps=steps)
    return Loop(
        method,
        steps,
        devices.compile(dispatch, is_resident),
        partial(feed, settings, dataset, devices),
        devices,
        None if retriever is None else _refresher(retriever, queries, mesh),
    )


def _resident(
    settings: Settings, dataset: DataSet, devices: parallel.Parallel, step: int
) -> Generator[Any, None, None]:
    arrays = resident.load(dataset.train, jax.process_index() == 0, views_of(settings))
    yield from itertools.repeat(devices.place_arrays(arrays))


def _streamed(
    settings: Settings,
    dataset: DataSet,
    devices: parallel.Parallel,
    step: int,
    *,
    sampler: sampling.Sampler,
    steps: int,
) -> Generator[Any, None, None]:
    data, stop = settings.data, settings.train.steps
    source = streamed.batches(
        dataset.train, sampler, start=step, stop=stop, workers=data.workers, prefetch=data.prefetch
    )
    with contextlib.closing(source):
        while batches := list(itertools.islice(source, steps)):
            yield devices.place_batches(jax.tree.map(lambda *x: np.stack(x), *batches))


def _refresher(
    retriever: retrieval.Retriever, queries: Callable[[TrainState, Any], Batch], mesh: Mesh
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, float]]]:
    @partial(jax.jit, out_shardings=sharding.replicated(mesh))
    def recall(state: TrainState, fresh: jax.Array, arrays: Any) -> jax.Array:
        return retriever.recall(state.variables, state.statistics[KEYS], fresh, arrays, queries(state, arrays))

    def refresh(state: TrainState, arrays: Any) -> tuple[TrainState, dict[str, float]]:
        fresh = retriever.refresh(state.variables, arrays)
        # The first keys of a run replace none.
        measured = {"retrieval_recall": float(recall(state, fresh, arrays))} if state.step > 0 else {}
        return state._replace(statistics={**state.statistics, KEYS: fresh}), measured

    return refresh
