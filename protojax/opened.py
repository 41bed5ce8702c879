"""A trained run, opened: what it was trained for, its parameters and its database; and how it scores examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from protojax import codes, config, database, evaluate, methods, run, step, train
from protojax.candidates import CandidateDatabase
from protojax.config import AugmentSettings, Settings
from protojax.data import DataSet, frozen, images
from protojax.database import Transform
from protojax.evaluate import Scored
from protojax.methods import Method

WIDTH = 64
"""Prototypes kept of a decision where `explain.width` says nothing."""


class Preparation(NamedTuple):
    """The preparation of inputs outside training, on the device: no augmentation, standardisation where wanted.

    Equal ones are one and the same to `jax.jit`, so that what compiled during training serves after it.
    """

    kind: str
    augment: AugmentSettings

    def __call__(self, inputs: jax.Array, ids: jax.Array | None) -> jax.Array:
        """Prepares raw inputs `[batch, ...]`."""
        return images.plain(inputs, self.kind, self.augment)


class Encoder(NamedTuple):
    """A trained run without its database."""

    folder: Path
    settings: Settings
    dataset: DataSet
    method: Method
    state: train.TrainState
    transform: Preparation


class Opened(NamedTuple):
    """A trained run, ready to answer."""

    folder: Path
    settings: Settings
    dataset: DataSet
    method: Method
    state: train.TrainState
    memory: CandidateDatabase
    """What the method leans on: the database of the run, or what it makes of it."""
    transform: Transform


def open_encoder(
    folder: Path,
    settings: Settings | None = None,
    dataset: DataSet | None = None,
    trained: train.Trained | None = None,
) -> Encoder:
    """Reads a trained run without its database.

    Args:
      folder: the run folder.
      settings: those of the run, where something was overridden.
      dataset: its data, where they are loaded already.
      trained: what `train.fit` returned in this process, which need not be read and compiled again.

    Raises:
      RunError: the folder holds no trained run.
      CheckpointError, ValueError: the checkpoint is damaged, or the settings do not fit the data.
    """
    settings = settings or run.read(folder)
    dataset = dataset or frozen.load(settings)
    check(settings, dataset)
    if trained is not None and settings.evaluate.checkpoint == "newest":
        state = trained.state
    else:
        state = train.restore(settings, dataset, folder)
    method = methods.build(settings, len(dataset.info.label_names)) if trained is None else trained.method
    if method.has_codes:
        left = codes.opened(folder, state.variables)
        state = state._replace(params=left.pop("params"), statistics=left)
    return Encoder(folder, settings, dataset, method, state, preparation(settings, dataset))


def open_run(
    folder: Path,
    settings: Settings | None = None,
    dataset: DataSet | None = None,
    quiet: bool = False,
    trained: train.Trained | None = None,
) -> Opened:
    """Reads a trained run; its database is encoded anew where the one on disk is of other parameters or examples.

    Raises:
      RunError, CheckpointError, ValueError: as `open_encoder`, or the database is damaged, or edited and of other
        parameters or examples.
    """
    encoder = open_encoder(folder, settings, dataset, trained)
    _, settings, dataset, method, state, transform = encoder
    memory = database.load_or_build(
        folder / "database",
        method,
        state.variables,
        dataset.train,
        candidates(settings, dataset),
        transform,
        settings.evaluate.batch_size,
        progress=not quiet,
        mesh=evaluate.mesh_of(method),
    )
    return Opened(folder, settings, dataset, method, state, method.memory(state.variables, memory), transform)


def score(
    opened: Opened, source: Any, quiet: bool = False, transform: Transform | None = None, width: int | None = None
) -> Scored:
    """Scores every example of a split; `transform` and `width` stand in for those of the run."""
    return evaluate.score(
        opened.method,
        opened.state.variables,
        opened.memory,
        source,
        transform or opened.transform,
        opened.settings.evaluate.batch_size,
        width or width_of(opened.settings, opened.memory),
        progress=not quiet,
    )


def split_of(dataset: DataSet, split: str) -> Any:
    """A split by its name.

    Raises:
      ValueError: the data set has none of this name.
    """
    if (source := getattr(dataset, split)) is None:
        raise ValueError(
            f"{dataset.info.name} has no {split} split; a run trained with data.validation_fraction has one"
        )
    return source


def width_of(settings: Settings, memory: CandidateDatabase) -> int:
    """Prototypes kept of a decision."""
    return min(settings.explain.width or WIDTH, len(memory.ids))


def reopened_settings(folder: Path, overrides: Sequence[str]) -> Settings:
    """The settings of a run with overrides of what does not touch its training.

    Raises:
      SettingsError: an override is impossible, or of a setting that the parameters depend on.
    """
    settings = run.read(folder)
    changed = config.override(settings, overrides, str(folder / "run.json"))
    if different := run.differences(settings, changed):
        raise config.SettingsError(
            f"{', '.join(different)}: cannot change after training; evaluate.*, explain.* and data.data_dir can"
        )
    return changed


def check(settings: Settings, dataset: DataSet) -> None:
    """Refuses settings that do not fit the data, before anything is compiled.

    Raises:
      ValueError: says which setting, and what the data have.
    """
    info, encoder = dataset.info, settings.encoder.kind
    fitting = {
        "image": ("conv", "resnet", "autoencoder", "vit"),
        "text": ("vdcnn",),
        "table": ("lstm",),
        "features": ("features", "frozen"),
    }[info.kind]
    if encoder not in fitting:
        needed = " or ".join(fitting)
        raise ValueError(f"encoder.kind = {encoder!r} does not read {info.kind}s; {info.name} needs {needed}")
    shares = settings.data.class_shares
    if shares is not None and len(shares) != len(info.label_names):
        raise ValueError(f"data.class_shares has {len(shares)} shares, {info.name} has {len(info.label_names)} classes")
    if settings.data.mix.wanted and len(info.input_shape) != 3:
        what = {"features": "features without places", "text": "texts", "table": "rows of a table"}[info.kind]
        raise ValueError(f"data.mix mixes images or maps of features, but {info.name} holds {what}: leave data.mix out")
    step.sampler_of(settings, dataset)
    width = settings.explain.width
    if width is not None and settings.train.candidate_count and width > (size := len(candidates(settings, dataset))):
        raise ValueError(f"explain.width = {width}, but the database has {size} candidates (evaluate.candidate_count)")


def preparation(settings: Settings, dataset: DataSet) -> Preparation:
    """The preparation of the inputs of a data set outside training."""
    return Preparation(dataset.info.kind, settings.data.augment)


def candidates(settings: Settings, dataset: DataSet) -> np.ndarray:
    """int32 positions in the training split of the examples that a run keeps in its database."""
    return database.choose(len(dataset.train), settings.evaluate.candidate_count, settings.train.seed)
