"""Tests of protojax.neighbours."""

import jax.numpy as jnp
import numpy as np
import pytest

from protojax import neighbours
from protojax.candidates import CandidateDatabase
from protojax.evaluate import Scored
from protojax.methods.method import Support


def examples(n: int, first_id: int, seed: int, classes: int = 3) -> CandidateDatabase:
    """Clusters by class in two representations, noisy enough that neighbours disagree."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    centres = np.random.default_rng(99).normal(size=(classes, 4))
    embeddings = {
        "keys": jnp.asarray(centres[labels] + rng.normal(size=(n, 4)), jnp.float32),
        "values": jnp.asarray(centres[labels] * 3 + rng.normal(size=(n, 4)), jnp.float32),
    }
    return CandidateDatabase(
        jnp.arange(first_id, first_id + n, dtype=jnp.int32), jnp.asarray(labels, jnp.int32), embeddings
    )


def nonconformity(training: CandidateDatabase, ids, embeddings, position: int, label: int, k: int) -> int:
    """a(x, j) of the paper in float64, one example at a time."""
    count = 0
    for name, candidates in training.embeddings.items():
        candidates = np.asarray(candidates, np.float64)
        query = np.asarray(embeddings[name], np.float64)[position]
        cosine = candidates @ query / np.linalg.norm(candidates, axis=1) / np.linalg.norm(query)
        cosine[np.asarray(training.ids) == int(ids[position])] = -np.inf
        nearest = np.argsort(-cosine)[:k]
        count += int((np.asarray(training.labels)[nearest] != label).sum())
    return count


def test_p_values_are_those_of_the_paper():
    k = 7
    training, calibration, test = examples(80, 0, 0), examples(25, 100, 1), examples(30, 200, 2)
    judged = neighbours.judge(training, calibration, test, k, 3, batch_size=8)
    scale = [
        nonconformity(training, calibration.ids, calibration.embeddings, i, int(calibration.labels[i]), k)
        for i in range(25)
    ]
    for i in range(30):
        a = [nonconformity(training, test.ids, test.embeddings, i, label, k) for label in range(3)]
        p = [sum(c >= x for c in scale) / 25 for x in a]
        best = int(np.argmin(a))
        assert judged.predicted[i] == best and p[best] == max(p)
        assert judged.credibility[i] == pytest.approx(max(p))
        assert judged.confidence[i] == pytest.approx(1 - max(p[:best] + p[best + 1 :]))
    assert 0 < judged.credibility.min() + judged.confidence.min() and len(set(judged.credibility.tolist())) > 3


def test_an_example_is_not_its_own_neighbour():
    training, calibration = examples(40, 0, 0), examples(20, 100, 1)
    judged = neighbours.judge(training, calibration, training, 1, 3)
    alone = [
        int(np.argmin([nonconformity(training, training.ids, training.embeddings, i, c, 1) for c in range(3)]))
        for i in range(40)
    ]
    np.testing.assert_array_equal(judged.predicted, alone)
    # With k = 40 every other example votes, itself never: the vote for the own class is one short.
    votes = neighbours._votes(training, training, 40, 3, 16)
    counts = np.bincount(np.asarray(training.labels), minlength=3)
    np.testing.assert_array_equal(votes, 2 * (counts[None, :] - np.eye(3, dtype=int)[np.asarray(training.labels)]))


def test_dead_embeddings_are_far_from_everything():
    training, calibration, test = examples(40, 0, 0), examples(20, 100, 1), examples(5, 200, 2)
    training = training.replace(embeddings={name: x.at[3].set(0) for name, x in training.embeddings.items()})
    judged = neighbours.judge(training, calibration, test, 5, 3)
    assert np.isfinite(judged.credibility).all()


@pytest.mark.parametrize("k", [0, 11])
def test_more_neighbours_than_candidates_are_refused(k):
    with pytest.raises(ValueError, match=rf"evaluate.neighbours = {k}, but the database holds 10 candidates"):
        neighbours.judge(examples(10, 0, 0), examples(5, 100, 1), examples(5, 200, 2), k, 3)


def test_calibration_on_the_test_set_is_refused():
    test = examples(5, 200, 2)
    with pytest.raises(ValueError, match=r"5 test examples are also calibration examples, first ids \[200, 201"):
        neighbours.judge(examples(10, 0, 0), test, test, 3, 3)


def test_calibration_needs_examples():
    nothing = neighbours.jax.tree.map(lambda x: x[:0], examples(3, 100, 1))
    with pytest.raises(ValueError, match="got 0 calibration and 5 test examples"):
        neighbours.judge(examples(10, 0, 0), nothing, examples(5, 200, 2), 3, 3)


def test_a_split_keeps_every_example_once():
    whole = examples(20, 200, 2)
    calibration, test = neighbours.split(whole, 6, seed=0)
    assert len(calibration.ids) == 6 and len(test.ids) == 14
    np.testing.assert_array_equal(np.sort(np.concatenate([calibration.ids, test.ids])), whole.ids)
    rows = np.asarray(test.ids) - 200
    np.testing.assert_array_equal(test.embeddings["keys"], np.asarray(whole.embeddings["keys"])[rows])
    np.testing.assert_array_equal(test.labels, np.asarray(whole.labels)[rows])


@pytest.mark.parametrize("count", [0, 20])
def test_a_split_leaves_something_on_both_sides(count):
    with pytest.raises(ValueError, match=rf"{count} of 20 held-out examples .* choose 1 to 19"):
        neighbours.split(examples(20, 200, 2), count, 0)


def scored_of(ids, labels, predicted, confidence) -> Scored:
    scores = np.eye(3, dtype=np.float32)[np.asarray(predicted)]
    nothing = np.zeros((len(ids), 1), np.int32)
    support = Support(nothing, nothing.astype(np.float32), nothing, nothing[:, 0])
    return Scored(
        np.asarray(ids, np.int32),
        np.asarray(labels, np.int32),
        scores,
        scores,
        support,
        np.asarray(confidence, np.float32),
        nothing,
    )


def test_the_method_is_compared_on_the_same_examples():
    test = examples(4, 200, 2)
    labels = np.asarray(test.labels)
    # Scored in another order and with examples that the neighbours did not judge.
    scored = scored_of(
        [203, 7, 200, 202, 201],
        [labels[3], 0, labels[0], labels[2], labels[1]],
        [labels[3], 1, labels[0], labels[2], (labels[1] + 1) % 3],
        [0.9, 0.1, 0.8, 0.7, 0.6],
    )
    judged = neighbours.Judged(labels, np.full(4, 0.5, np.float32), np.full(4, 0.75, np.float32))
    results = neighbours.results(judged, test, 3, scored)
    assert results["accuracy"] == {"neighbours": 1.0, "method": 0.75}
    curves = results["coverage_curve"]
    at = curves["method"]["thresholds"].index(0.65)
    assert curves["method"]["accuracy"][at] == 1.0 and curves["method"]["share"][at] == 0.75
    assert curves["neighbours_confidence"]["share"][at] == 1.0
    assert curves["neighbours_credibility"]["share"][at] == 0.0
    with pytest.raises(ValueError, match="example 201 was judged by its neighbours but not scored"):
        neighbours.results(judged, test, 3, scored_of([200, 202, 203], [0] * 3, [0] * 3, [0.5] * 3))


def test_the_empty_places_of_an_index_are_nobodys_neighbours():
    training, calibration, test = examples(20, 0, 0), examples(25, 100, 1), examples(30, 200, 2)
    expected = neighbours.judge(training, calibration, test, 15, 3)
    found = neighbours.judge(training.index(16), calibration, test, 15, 3)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
