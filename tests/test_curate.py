"""Tests of protojax.curate: the database of a run, without the training of one."""

import jax.numpy as jnp
import numpy as np
import pytest

from protojax import config, curate, database, manifest, shards, step
from protojax.data import DataSet, Info
from protojax.data.source import Examples
from protojax.manifest import DatabaseError
from protojax.methods.method import Method
from protojax.opened import Encoder

NAMES = ("cat", "dog", "owl")


def unused(*_):
    raise AssertionError("not needed to build a database")


def plain(inputs, ids):
    return inputs


METHOD = Method(unused, unused, lambda variables, inputs: {"keys": inputs * variables["params"]["scale"]}, unused)


def encoder_of(folder, scale: float = 2.0) -> Encoder:
    """A run of 12 training examples with the ids 100 to 111, of which its database holds 8."""
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    ids, labels = np.arange(100, 120, dtype=np.int32), (np.arange(20) % 3).astype(np.int32)
    splits = [Examples(ids, labels, np.arange(*part), rows, rows) for part in ((0, 12), (12, 16), (16, 20))]
    info = Info("rows", "1.0.0", "table", NAMES, (3,), "f", {"train": 12, "validation": 4, "test": 4})
    tree = {
        "name": "tiny",
        "encoder": {"kind": "lstm"},
        "method": {"kind": "protoattend"},
        "train": {"candidate_count": 4},
        "evaluate": {"candidate_count": 8, "batch_size": 4},
    }
    state = step.TrainState(0, {"scale": jnp.float32(scale)}, {}, None, 0, 0)
    return Encoder(folder, config.from_tree(tree, "test"), DataSet(info, *splits), METHOD, state, plain)


@pytest.fixture
def run(tmp_path) -> Encoder:
    encoder = encoder_of(tmp_path)
    curate.build(encoder, quiet=True)
    return encoder


def ids_of(run) -> list[int]:
    return shards.read(run.folder / "database").ids.tolist()


def test_a_database_of_other_parameters_is_not_edited(run):
    other, before = encoder_of(run.folder, 3.0), manifest.read(run.folder / "database")
    first = ids_of(run)[0]
    for edit in (
        lambda: curate.remove(other, [first]),
        lambda: curate.relabel(other, [first], (first + 1) % 3),
        lambda: curate.append(other, "validation", quiet=True),
    ):
        with pytest.raises(
            DatabaseError, match=r"stale: encoded by .*; delete the folder and build the database again"
        ):
            edit()
    assert manifest.read(run.folder / "database") == before


def test_a_label_that_a_candidate_has_is_no_edit(run):
    first, second = ids_of(run)[:2]
    labels = dict(zip(run.dataset.train.ids.tolist(), run.dataset.train.labels.tolist(), strict=True))
    with pytest.raises(ValueError, match=f"id {second} has the label {NAMES[labels[second]]} already"):
        curate.check(run.folder, [first, second], labels[second], NAMES)
    with pytest.raises(ValueError, match=f"id {second} has the label {labels[second]} already"):
        curate.relabel(run, [first, second], labels[second])
    assert curate.summary(run.folder)["edits"] == []
    curate.relabel(run, [first], labels[second])
    assert [edit["examples"] for edit in curate.summary(run.folder)["edits"]] == [1]


def test_the_last_candidate_stays(run):
    with pytest.raises(ValueError, match="no candidate would be left"):
        curate.remove(run, ids_of(run))


def test_what_came_back_is_not_counted_as_removed(run):
    first, second, third = ids_of(run)[:3]
    curate.remove(run, [first, second])
    curate.append(run, "train", [second], quiet=True)
    curate.append(run, "validation", [112], quiet=True)
    assert (curate.summary(run.folder)["count"], curate.summary(run.folder)["removed"]) == (8, 1)
    curate.remove(run, [second, third])
    assert curate.summary(run.folder)["removed"] == 3


def test_a_kill_after_a_build_leaves_it_marked(run, monkeypatch):
    install = manifest.install

    def killed(fresh, folder):
        install(fresh, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "install", killed)
    with pytest.raises(KeyboardInterrupt):
        curate.build(run, "validation", quiet=True)
    assert [edit.edit for edit in manifest.read(run.folder / "database").edits] == ["build"]
    chosen = database.choose(12, 8, run.settings.train.seed)
    again = database.load_or_build(
        run.folder / "database", METHOD, run.state.variables, run.dataset.train, chosen, plain, 4, progress=False
    )
    assert again.ids.tolist() == [112, 113, 114, 115]


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_a_database_of_other_parameters_is_not_replaced_without_a_word(run, capsys, scale):
    other = encoder_of(run.folder, scale)
    chosen = database.choose(12, 8, run.settings.train.seed)
    database.load_or_build(
        run.folder / "database", METHOD, other.state.variables, other.dataset.train, chosen, plain, 4
    )
    said = [line for line in capsys.readouterr().err.splitlines() if "encoded by other parameters" in line]
    assert len(said) == (scale != 2.0)
    assert all(line.startswith(f"{run.folder / 'database'}: ") and line.endswith("; built anew") for line in said)
