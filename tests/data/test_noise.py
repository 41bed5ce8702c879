import jax
import numpy as np
import pytest

from protojax.data.noise import noisy_labels

IDS = np.arange(20000, dtype=np.int32)
LABELS = (IDS % 5).astype(np.int32)


def test_share_and_uniformity():
    noisy = np.asarray(noisy_labels(LABELS, IDS, 0.4, 5, seed=1))
    wrong = noisy != LABELS
    # Five standard deviations.
    assert abs(wrong.mean() - 0.4) < 5 * np.sqrt(0.24 / len(IDS))
    shifts = np.bincount((noisy - LABELS)[wrong] % 5, minlength=5)
    assert shifts[0] == 0
    np.testing.assert_allclose(shifts[1:] / wrong.sum(), 0.25, atol=0.03)


def test_the_noise_belongs_to_the_example():
    compiled = jax.jit(lambda labels, ids: noisy_labels(labels, ids, 0.6, 5, 3))
    whole = np.asarray(noisy_labels(LABELS, IDS, 0.6, 5, 3))
    order = np.random.default_rng(0).permutation(len(IDS))[:300]
    np.testing.assert_array_equal(compiled(LABELS[order], IDS[order]), whole[order])
    for other in (noisy_labels(LABELS, IDS, 0.6, 5, 4), noisy_labels(LABELS, IDS + 20000, 0.6, 5, 3)):
        assert (np.asarray(other) != whole).mean() > 0.4


def test_rates_0_and_1():
    np.testing.assert_array_equal(noisy_labels(LABELS, IDS, 0.0, 5, 0), LABELS)
    np.testing.assert_array_equal(noisy_labels(LABELS % 2, IDS, 1.0, 2, 0), 1 - LABELS % 2)


def test_bad_input():
    with pytest.raises(ValueError, match="data.label_noise = 1.5 is not a share"):
        noisy_labels(LABELS, IDS, 1.5, 5, 0)
    with pytest.raises(ValueError, match="there are 1 classes"):
        noisy_labels(LABELS, IDS, 0.5, 1, 0)
    with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
        noisy_labels(LABELS[:3], IDS[:2], 0.5, 5, 0)
