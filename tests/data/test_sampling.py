import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax.data import permutation, sampling

SIZES = [1, 2, 3, 4, 5, 7, 16, 17, 1797, 60000]
LAST = sampling.MAX_STEPS - 1


@pytest.mark.parametrize("n", SIZES)
def test_every_epoch_holds_every_example_once(n):
    sampler = sampling.sampler(n, n, n, seed=7)
    for step in (0, 1, 2, LAST):
        np.testing.assert_array_equal(np.sort(sampling.batch_indices(sampler, step)), np.arange(n))
        np.testing.assert_array_equal(np.sort(sampling.candidate_indices(sampler, step)), np.arange(n))


@pytest.mark.parametrize("n, batch_size", [(7, 3), (1797, 128), (5, 12), (1, 4), (60000, 1000)])
def test_batches_are_one_endless_stream_of_epochs(n, batch_size):
    sampler, whole = sampling.sampler(n, batch_size, 0, 3), sampling.sampler(n, n, 0, 3)
    epochs = -(-batch_size * 8 // n)
    stream = np.concatenate([sampling.batch_indices(whole, epoch) for epoch in range(epochs)])
    for step in range(8):
        expected = stream[step * batch_size : (step + 1) * batch_size]
        np.testing.assert_array_equal(sampling.batch_indices(sampler, step), expected)


def test_positions_far_beyond_32_bits():
    # The position is about 2**46, and its epoch still a step of the sampler of whole epochs.
    n, batch_size, step = 60000, 2**15, LAST
    epoch, offset = divmod(step * batch_size, n)
    whole = sampling.sampler(n, n, 0, 3)
    expected = np.concatenate([sampling.batch_indices(whole, epoch), sampling.batch_indices(whole, epoch + 1)])
    got = sampling.batch_indices(sampling.sampler(n, batch_size, 0, 3), step)
    np.testing.assert_array_equal(got, expected[offset : offset + batch_size])


def test_long_division_against_integers_of_python():
    rng = np.random.default_rng(0)
    for _ in range(500):
        n, factor = (int(rng.integers(1, 2 ** rng.integers(1, 31))) for _ in range(2))
        for step in (int(rng.integers(0, sampling.MAX_STEPS)), LAST):
            epoch, offset = sampling._divide_product(*(np.array([x], np.uint32) for x in (step, factor, n)))
            assert (int(epoch[0]), int(offset[0])) == (step * factor // n % 2**32, step * factor % n)


def _unbalanced(n):
    return np.random.default_rng(0).choice(4, size=n, p=[0.6, 0.2, 0.15, 0.05])


@pytest.mark.parametrize("shares", [None, (0.25, 0.25, 0.3, 0.2)])
@pytest.mark.parametrize("n", [40, 1797, 60000])
def test_compiled_equals_numpy(n, shares):
    labels = np.concatenate([np.arange(4), _unbalanced(n - 4)])
    sampler = sampling.sampler(n, 50, 8, 11, labels, shares)
    drawn = jax.jit(lambda s: (sampling.batch_indices(sampler, s), sampling.candidate_indices(sampler, s)))
    for step in (0, 1, 77, LAST):
        batch, candidates = drawn(jnp.int32(step))
        assert batch.dtype == candidates.dtype == jnp.int32
        np.testing.assert_array_equal(batch, sampling.batch_indices(sampler, step))
        np.testing.assert_array_equal(candidates, sampling.candidate_indices(sampler, np.uint32(step)))


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_all_orders_of_few_examples_are_equally_likely(n):
    orders = list(itertools.permutations(range(n)))
    epochs = np.arange(200 * len(orders), dtype=np.uint32)[:, None]
    sampler = sampling.sampler(n, n, 0, 5)
    keys = sampling._keys(sampler, "batch", np.zeros(1, np.int64))
    places, sizes = np.arange(n, dtype=np.uint32)[None], np.array([[n]], np.uint32)
    drawn = permutation.permute(np, places, epochs, sizes, keys[:, None])
    np.testing.assert_array_equal(drawn[3], sampling.batch_indices(sampler, 3))
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == len(orders)
    _assert_even(counts)


@pytest.mark.parametrize("n", [9, 100])
def test_every_place_holds_every_example_equally_often(n):
    sampler = sampling.sampler(n, n, 0, 1)
    orders = np.stack([sampling.batch_indices(sampler, epoch) for epoch in range(20 * n)])
    counts = np.stack([np.bincount(column, minlength=n) for column in orders.T])
    _assert_even(counts.ravel())
    followers = np.bincount(((orders[:, 1:] - orders[:, :-1]) % n).ravel(), minlength=n)[1:]
    _assert_even(followers)


def _assert_even(counts):
    # Six standard deviations of chi-squared above its mean.
    expected = counts.mean()
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    degrees = len(counts) - 1
    assert chi_squared < degrees + 6 * np.sqrt(2 * degrees) + 6


def test_epochs_seeds_and_streams_differ():
    def order(seed, step, draw=sampling.batch_indices):
        return draw(sampling.sampler(1797, 1797, 1797, seed), step)

    orders = [order(0, 0), order(0, 1), order(1, 0), order(2**40, 0), order(0, 0, sampling.candidate_indices)]
    for one, other in itertools.combinations(orders, 2):
        # Independent orders agree in about one place.
        assert (one == other).sum() < 10
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.12


def test_class_shares():
    labels = np.concatenate([np.arange(4), _unbalanced(996)])
    sampler = sampling.sampler(1000, 10, 20, 0, labels, (0.25, 0.25, 0.3, 0.2))
    # 2.5, 2.5, 3, 2 of 10: the largest remainder, and of equal ones the first.
    drawn = [sampling.batch_indices(sampler, step) for step in range(200)]
    for batch in drawn:
        np.testing.assert_array_equal(np.bincount(labels[batch], minlength=4), [3, 2, 3, 2])
        # The classes are spread over the rows, so that both halves hold all of them.
        assert set(labels[batch[:5]]) == set(labels[batch[5:]]) == {0, 1, 2, 3}
    candidates = sampling.candidate_indices(sampler, 3)
    np.testing.assert_array_equal(np.bincount(labels[candidates], minlength=4), [5, 5, 6, 4])
    assert len(set(candidates.tolist())) == 20
    # Within a class, each epoch holds each example once.
    rare = np.concatenate([batch[labels[batch] == 3] for batch in drawn])
    size = (labels == 3).sum()
    for epoch in range(len(rare) // size):
        assert len(set(rare[epoch * size : (epoch + 1) * size].tolist())) == size


def test_a_sampler_is_a_static_argument():
    labels = np.arange(40) % 4
    one, same, other = (sampling.sampler(40, 8, 4, 0, x, [0.25] * 4) for x in (labels, labels.copy(), labels[::-1]))
    assert one == same and hash(one) == hash(same) and one != other
    drawn = jax.jit(sampling.batch_indices, static_argnums=0)
    np.testing.assert_array_equal(drawn(other, jnp.int32(5)), sampling.batch_indices(other, 5))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 1, 0, 0), "the split has 0 examples"),
        ((2**31, 1, 0, 0), "the split has 2147483648 examples"),
        ((10, 0, 0, 0), "train.batch_size = 0"),
        ((10, 1, 11, 0), "train.candidate_count = 11, but the training split has 10 examples"),
        ((10, 1, 0, -1), "train.seed = -1"),
        ((4, 4, 4, 0, np.array([0, 0, 0, 1]), (0.5, 0.5)), "2 candidates of class 1, but the training split has 1 "),
        ((4, 4, 0, 0, np.array([0, 0, 0, 0]), (0.5, 0.5)), "class 1 a share, but the training split has none of it"),
        ((4, 2, 0, 0, np.array([0, 0, 0, 1]), (0.9, 0.1)), "class 1 gets no row of train.batch_size = 2"),
        ((4, 4, 1, 0, np.array([0, 0, 1, 1]), (0.5, 0.5)), "class 1 gets none of train.candidate_count = 1"),
        ((4, 4, 0, 0, np.array([0, 1, 2, 2]), (0.5, 0.5)), "2 shares, but the training split has labels up to 2"),
        ((4, 4, 0, 0, None, (0.5, 0.5)), "labels of all 4 examples, got 0"),
    ],
)
def test_impossible_samplers(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampling.sampler(*arguments)


@pytest.mark.parametrize("step", [-1, 2**31])
def test_impossible_steps(step):
    with pytest.raises(ValueError, match=f"step {step} is not in"):
        sampling.batch_indices(sampling.sampler(10, 2, 0, 0), step)
