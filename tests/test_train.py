import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from protojax import checkpoint, config, data, step, train
from protojax.data import images
from protojax.methods import Method

TINY = {
    "name": "tiny",
    "encoder": {"kind": "conv", "filters": [4], "dense": [16], "dropout": 0.1},
    "method": {"kind": "protoattend", "key_size": 4, "value_size": 8},
    "train": {
        "steps": 12,
        "batch_size": 16,
        "candidate_count": 24,
        "log_every": 4,
        "checkpoint_every": 4,
    },
}


def settings_with(**train_changes):
    return config.from_tree({**TINY, "train": {**TINY["train"], **train_changes}}, "test")


@pytest.fixture(scope="module")
def digits():
    return data.load(config.DataSettings())


def assert_close(found, expected):
    """Programs that are compiled apart round apart."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def no_validation(method, variables):
    return {"score": 0.0}


def fit(settings, dataset, folder):
    folder.mkdir(exist_ok=True)
    return train.fit(settings, dataset, folder, no_validation, quiet=True)


def linear_method(loss):
    def init(key, batch):
        return {"params": {"w": jnp.ones(3)}}

    def method_loss(variables, batch, key, step):
        return loss(variables["params"]["w"], batch), ({}, {})

    return Method(init, method_loss, None, None)


def test_a_step_is_adam_on_the_gradient():
    method = linear_method(lambda w, batch: (w * batch["inputs"]).sum())
    transform = optax.sgd(0.5)
    state = step.create(method, transform, jax.random.key(0), {})
    gradient = jnp.array([1.0, -2.0, 0.5])
    state, metrics = step.train_step(
        state, {"inputs": gradient}, method=method, transform=transform, key=jax.random.key(0)
    )
    np.testing.assert_allclose(state.params["w"], 1 - 0.5 * gradient)
    assert int(state.step) == 1
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(1 + 4 + 0.25), rtol=1e-6)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_a_non_finite_step_leaves_everything_but_the_count(value):
    method = linear_method(lambda w, batch: (w * batch["inputs"]).sum())
    transform = optax.adam(0.1)
    advance = jax.jit(
        lambda s, x: step.train_step(s, {"inputs": x}, method=method, transform=transform, key=jax.random.key(0))
    )
    before, _ = advance(step.create(method, transform, jax.random.key(0), {}), jnp.ones(3))
    after, metrics = advance(before, jnp.array([1.0, value, 1.0]))
    for name in ("params", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    assert (int(after.step), int(after.bad_in_row), int(after.bad_total)) == (2, 1, 1)
    assert int(metrics["bad_in_row"]) == 1
    recovered, _ = advance(after, jnp.ones(3))
    assert (int(recovered.bad_in_row), int(recovered.bad_total)) == (0, 1)
    assert not np.array_equal(recovered.params["w"], after.params["w"])


def test_a_run_of_non_finite_steps_ends_with_step_and_ids(digits, tmp_path):
    settings = config.from_tree(
        {**TINY, "optimizer": {"learning_rate": 1e30, "clip": "none"}, "train": {**TINY["train"], "max_bad_steps": 2}},
        "test",
    )
    with pytest.raises(
        train.NonFiniteError, match=r"not finite 2 steps in a row, the last at step \d+ with ids \[\d+, "
    ):
        fit(settings, digits, tmp_path / "run")


def test_resumed_runs_are_bitwise_equal(digits, tmp_path):
    whole = fit(settings_with(), digits, tmp_path / "whole")
    fit(settings_with(steps=4), digits, tmp_path / "parts")
    resumed = fit(settings_with(), digits, tmp_path / "parts")
    assert resumed.steps_run == 8
    assert checkpoint.digest(resumed.state) == checkpoint.digest(whole.state)


def test_streamed_equals_resident(digits, tmp_path):
    resident = fit(settings_with(steps=4), digits, tmp_path / "resident")
    tree = {**TINY, "train": {**TINY["train"], "steps": 4}, "data": {"feeding": "streamed"}}
    streamed = fit(config.from_tree(tree, "test"), digits, tmp_path / "streamed")
    assert_close(streamed.state.params, resident.state.params)


def test_steps_per_dispatch_does_not_matter(digits, tmp_path):
    one = fit(settings_with(steps=4, steps_per_dispatch=1), digits, tmp_path / "one")
    four = fit(settings_with(steps=4, steps_per_dispatch=4), digits, tmp_path / "four")
    assert_close(one.state.params, four.state.params)


@pytest.mark.parametrize("moved", [True, False])
def test_candidates_are_augmented_where_the_settings_say_so(digits, moved):
    tree = {**TINY, "data": {"augment": {"flip_horizontal": True, "candidates": moved}}}
    part = {name: np.stack([digits.train[i][name] for i in range(32)]) for name in ("id", "inputs", "label")}
    batch = jax.tree.map(jnp.asarray, {**part, "candidates": part})
    settings = config.from_tree(tree, "test")
    prepared = step.prepare(batch, jax.random.key(0), settings=settings, classes=10, kind="image")
    plain = images.transform(batch["inputs"], settings.data.augment)
    as_they_are = [bool((part["inputs"] == plain).all()) for part in (prepared, prepared["candidates"])]
    assert as_they_are == [False, not moved]


def test_a_damaged_checkpoint_is_named(digits, tmp_path):
    fit(settings_with(steps=4), digits, tmp_path / "run")
    files = [p for p in (tmp_path / "run" / "checkpoints" / "4" / "state").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    largest.write_bytes(bytes(content))
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoints/4: (damaged|cannot be restored)"):
        fit(settings_with(), digits, tmp_path / "run")


def test_a_lost_checkpoint_file_is_named(digits, tmp_path):
    fit(settings_with(steps=4), digits, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints" / "4" / "state"
    for path in folder.rglob("d/*"):
        path.unlink()
    with pytest.raises(checkpoint.CheckpointError, match=r"checkpoints/4: (damaged|cannot be restored)"):
        fit(settings_with(), digits, tmp_path / "run")


def test_a_checkpoint_of_other_data_is_refused(digits, tmp_path):
    fit(settings_with(steps=4), digits, tmp_path / "run")
    other = digits._replace(info=digits.info._replace(fingerprint="other"))
    with pytest.raises(checkpoint.CheckpointError, match="trained with fingerprint .* this experiment has 'other'"):
        fit(settings_with(), other, tmp_path / "run")


def test_more_candidates_than_examples(digits, tmp_path):
    with pytest.raises(ValueError, match="99999"):
        fit(settings_with(candidate_count=99999), digits, tmp_path / "run")


def test_reading_a_run_leaves_what_is_being_saved_alone(digits, tmp_path):
    fit(settings_with(steps=4), digits, tmp_path / "run")
    saving = tmp_path / "run" / "checkpoints" / "8.orbax-checkpoint-tmp"
    saving.mkdir()
    assert int(train.restore(settings_with(), digits, tmp_path / "run").step) == 4
    assert saving.exists()


def test_reading_a_run_without_checkpoints_makes_no_folder(digits, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="run has no saved checkpoint; train it first"):
        train.restore(settings_with(), digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()
