"""The run folder: which experiment it holds, and where its files are."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from protojax import config
from protojax.config import Settings

PACKAGES = ("protojax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")

_FREE = {
    "": ("evaluate", "explain"),
    "data": ("data_dir", "workers", "prefetch"),
    # What the features are is in the fingerprint of the data, which holds the hashes of the weights and of the head.
    "encoder": ("features", "weights", "head", "batch_size"),
    "train": ("log_every", "checkpoint_every", "keep", "evaluate_every", "max_bad_steps"),
}
"""Settings that may differ between a run and its resumption, because the trained parameters do not depend on them."""


class RunError(RuntimeError):
    """A run folder cannot be used as asked."""


def claim(folder: Path, settings: Settings, overwrite: bool = False) -> bool:
    """Makes `folder` the run folder of an experiment; returns whether it already held the same one.

    Raises:
      RunError: the folder holds another experiment or something else.
    """
    record = folder / "run.json"
    if overwrite and record.exists():
        shutil.rmtree(folder)
    if record.exists():
        if different := differences(read(folder), settings):
            raise RunError(
                f"{folder} holds another experiment (different: {', '.join(different)}); "
                "choose another --workdir, or --overwrite to delete it"
            )
        return True
    if folder.exists() and any(folder.iterdir()):
        raise RunError(f"{folder} is not empty and holds no run.json; choose another --workdir")
    folder.mkdir(parents=True, exist_ok=True)
    return False


def write(folder: Path, settings: Settings, data: dict[str, Any]) -> None:
    """Records the resolved settings, the data, the package versions, the device and the git revision."""
    device = jax.devices()[0]
    write_json(
        folder / "run.json",
        {
            "settings": config.to_tree(settings),
            "data": data,
            "packages": {name: metadata.version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
            "processes": jax.process_count(),
            "git_revision": _git_revision(),
        },
    )


def read(folder: Path) -> Settings:
    """The settings of a run folder.

    Raises:
      RunError: the folder holds no run, or its record is damaged.
    """
    return _recorded(folder, lambda tree, record: config.from_tree(tree["settings"], record))


def label_names(folder: Path) -> tuple[str, ...]:
    """The names of the classes of a run, without its data.

    Raises:
      RunError: as `read`.
    """
    return _recorded(folder, lambda tree, record: tuple(tree["data"]["label_names"]))


def test_examples(folder: Path) -> str:
    """What a run was tested on, in words: data set, version, split and number of examples.

    Raises:
      RunError: as `read`.
    """
    return _recorded(folder, _test_examples)


def results(folder: Path) -> dict[str, Any]:
    """What `results.json` of a run folder says; empty where there is none yet.

    Raises:
      RunError: the file is damaged.
    """
    path = folder / "results.json"
    if not path.exists():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged: {error}; protojax evaluate --workdir {folder} writes it anew") from None


def _test_examples(tree: Any, record: str) -> str:
    about, split = tree["data"], tree["settings"]["data"]["test_split"]
    return f"{about['counts']['test']} examples of {about['name']}:{about['version']}, split {split}"


def _recorded(folder: Path, take: Callable[[Any, str], Any]) -> Any:
    record = folder / "run.json"
    try:
        return take(json.loads(record.read_text(encoding="utf-8")), str(record))
    except FileNotFoundError:
        raise RunError(f"{folder} is no run folder: it has no run.json; train one with protojax train") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise RunError(f"{record}: damaged: {error}") from None


def write_json(path: Path, tree: Any) -> None:
    """Writes JSON through a temporary file, so that a reader or a full disk never leaves half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(tree, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def differences(old: Settings, new: Settings) -> list[str]:
    """Settings in which two experiments differ so that their parameters do; a longer run may continue a shorter one."""
    different = _differences(config.to_tree(old), config.to_tree(new))
    if new.optimizer.schedule != "cosine" and "train.steps" in different:
        different.remove("train.steps")
    return different


def _differences(old: dict[str, Any], new: dict[str, Any], section: str = "") -> list[str]:
    different = []
    for key in sorted(old.keys() | new.keys()):
        if key in _FREE.get(section, ()):
            continue
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            different += [f"{key}.{d}" for d in _differences(a, b, key if not section else f"{section}.{key}")]
        elif a != b:
            different.append(key)
    return different


def _git_revision() -> str | None:
    """Revision of the checkout this package runs from, with `+changes` where it has uncommitted ones."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+changes" if dirty else "")
