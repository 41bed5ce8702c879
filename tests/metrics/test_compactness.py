"""Sizes, consistency and stability, worked out by hand."""

import numpy as np
import pytest

from protojax import metrics


def test_sizes():
    importance = np.array([[0.5, 0.1, 0.2, 0.0], [0.0, 0.05, 0.3, 0.0]])
    # An importance of exactly the threshold does not count.
    assert metrics.sizes(importance) == (1.5, 2)
    assert metrics.sizes(importance, threshold=0.0) == (2.5, 3)
    with pytest.raises(ValueError, match=r"importance must be \[images, prototypes\], got shape \(4,\)"):
        metrics.sizes(importance[0])


def hits_of(rows):
    return np.array(rows, bool).transpose(1, 0, 2)


def test_consistency():
    always = [[1, 0]] * 5
    mostly = [[1, 0]] * 4 + [[0, 1]]
    hits = hits_of([always, mostly, always])
    visible, used = np.ones((5, 2), bool), np.ones((5, 3), bool)
    used[:, 2] = False
    found = metrics.consistency(hits, visible, used)
    # 4 of 5 are 0.8, which is not above 0.8; a prototype that is never used is not measured.
    np.testing.assert_allclose(found.best, [1, 0.8, np.nan])
    assert found.share == 0.5
    assert metrics.consistency(hits, visible, used, level=0.75).share == 1
    # The image in which it shows another part does not count where it is not used, or where the part is not seen.
    used[4, 1] = False
    assert metrics.consistency(hits, visible, used).share == 1
    used[4, 1], visible[4, 0] = True, False
    assert metrics.consistency(hits, visible, used).best[1] == 1
    assert np.isnan(metrics.consistency(hits, visible, np.zeros_like(used)).share)


def test_stability():
    before = np.zeros((2, 2, 3), bool)
    after = before.copy()
    after[0, 0, 1] = after[1, 1, 2] = True
    visible, used = np.ones((2, 3), bool), np.ones((2, 2), bool)
    assert metrics.stability(before, after, visible, used) == pytest.approx(10 / 12)
    visible[1, 2] = False
    assert metrics.stability(before, after, visible, used) == pytest.approx(9 / 10)
    used[0, 0] = False
    assert metrics.stability(before, after, visible, used) == 1
    assert np.isnan(metrics.stability(before, after, visible, np.zeros_like(used)))
    with pytest.raises(ValueError, match="must be bool"):
        metrics.stability(before.astype(int), after, visible, used)
    with pytest.raises(ValueError, match=r"before \(2, 2, 3\) and after \(2, 2\)"):
        metrics.stability(before, after[..., 0], visible, used)


def test_noise_is_clipped_and_repeats():
    noise = metrics.gaussian_noise(3, (100, 100))
    np.testing.assert_array_equal(noise, metrics.gaussian_noise(3, (100, 100)))
    assert np.abs(noise).max() == np.float32(0.25)
    inner = noise[np.abs(noise) < 0.25]
    # 21 % of a normal distribution lie beyond 1.25 standard deviations.
    assert len(inner) / noise.size == pytest.approx(0.789, abs=0.02)
    assert inner.std() == pytest.approx(0.2 * 0.676, rel=0.05)
