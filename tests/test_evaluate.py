"""Tests of protojax.evaluate and of the curves that protojax.figures draws of it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from protojax import evaluate, figures
from protojax.candidates import CandidateDatabase
from protojax.evaluate import Scored
from protojax.methods.method import Method, Prediction, Support, support_of


class Source:
    def __init__(self, n: int):
        rng = np.random.default_rng(0)
        self.inputs = rng.normal(size=(n, 3)).astype(np.float32)
        self.ids = np.arange(50, 50 + n, dtype=np.int32)
        self.labels = rng.integers(0, 3, n).astype(np.int32)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict:
        return {"id": self.ids[i], "inputs": self.inputs[i], "label": self.labels[i]}


def unused(*_):
    raise AssertionError("not needed to score")


def predict(variables, memory, batch, width):
    weights = jax.nn.softmax(batch["inputs"] @ memory.embeddings.T * variables["scale"])
    mass = weights @ jax.nn.one_hot(memory.labels, 3)
    count = jnp.full((len(weights), 3), 2, jnp.int32)
    return Prediction(mass, mass, support_of(weights, memory.ids, memory.labels, width), mass.max(axis=-1), count)


METHOD = Method(unused, unused, unused, predict)


def memory_of(n: int) -> CandidateDatabase:
    rng = np.random.default_rng(1)
    embeddings = jnp.asarray(rng.normal(size=(n, 3)), jnp.float32)
    return CandidateDatabase(jnp.arange(n, dtype=jnp.int32), jnp.asarray(rng.integers(0, 3, n), jnp.int32), embeddings)


def plus_one(inputs, ids):
    return inputs + 1


def scored_of(confidence, correct, classes: int = 3, size=None, needed=None) -> Scored:
    """Predictions of class 0 with a given confidence, right where the label is 0, too."""
    confidence = np.asarray(confidence, np.float32)
    n = len(confidence)
    scores = np.full((n, classes), (1 - confidence[:, None]) / (classes - 1), np.float32)
    scores[:, 0] = confidence
    size = np.ones(n, np.int32) if size is None else np.asarray(size, np.int32)
    nothing = np.full((n, 2), -1, np.int32)
    support = Support(nothing, np.zeros((n, 2), np.float32), nothing, size)
    needed = np.ones((n, 3), np.int32) if needed is None else np.asarray(needed, np.int32)
    labels = np.where(correct, 0, 1).astype(np.int32)
    return Scored(np.arange(n, dtype=np.int32), labels, scores, scores, support, confidence, needed)


NAMES = ("a", "b", "c")


@pytest.mark.parametrize("n", [1, 4, 7, 8])
def test_every_example_is_scored(n):
    source, memory = Source(n), memory_of(6)
    scored = evaluate.score(METHOD, {"scale": jnp.float32(2)}, memory, source, plus_one, 4, 3, progress=False)
    logits = (source.inputs.astype(np.float64) + 1) @ np.asarray(memory.embeddings, np.float64).T * 2
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    order = np.argsort(-weights, axis=1)[:, :3]
    np.testing.assert_array_equal(scored.ids, source.ids)
    np.testing.assert_array_equal(scored.labels, source.labels)
    np.testing.assert_array_equal(scored.support.ids, np.asarray(memory.ids)[order])
    np.testing.assert_array_equal(scored.support.labels, np.asarray(memory.labels)[order])
    np.testing.assert_allclose(scored.support.weights, np.take_along_axis(weights, order, axis=1), rtol=1e-4)
    mass = np.stack([weights[:, np.asarray(memory.labels) == m].sum(axis=1) for m in range(3)], axis=1)
    np.testing.assert_allclose(scored.confidence, mass.max(axis=1), rtol=1e-4)
    np.testing.assert_array_equal(scored.correct, mass.argmax(axis=1) == source.labels)
    assert all(isinstance(leaf, np.ndarray) and len(leaf) == n for leaf in jax.tree.leaves(tuple(scored)))


def test_scoring_compiles_once():
    traces = []

    def traced(variables, memory, batch, width):
        traces.append(batch["inputs"].shape)
        return predict(variables, memory, batch, width)

    method = METHOD._replace(predict=traced)
    for n in (9, 6):
        evaluate.score(method, {"scale": jnp.float32(1)}, memory_of(5), Source(n), plus_one, 4, 2, progress=False)
    assert traces == [(4, 3)]


@pytest.mark.parametrize("width", [0, 7])
def test_a_support_wider_than_the_database_is_refused(width):
    with pytest.raises(ValueError, match=rf"explain.width = {width} prototypes .* holds 6 candidates"):
        evaluate.score(METHOD, {}, memory_of(6), Source(3), plus_one, 4, width)


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="has no examples"):
        evaluate.score(METHOD, {}, memory_of(6), Source(0), plus_one, 4, 2)


def test_scores_that_are_not_finite_name_their_examples():
    source = Source(6)
    source.inputs[5] = np.nan
    with pytest.raises(ValueError, match=r"1 of 6 examples .* not finite, first ids \[55\]"):
        evaluate.score(METHOD, {"scale": jnp.float32(1)}, memory_of(5), source, plus_one, 4, 2, progress=False)


def test_confidence_outside_its_range_is_refused():
    def doubled(*arguments):
        answer = predict(*arguments)
        return answer._replace(confidence=answer.confidence * 3)

    method = METHOD._replace(predict=doubled)
    with pytest.raises(ValueError, match=r"confidence must be in \[0, 1\]"):
        evaluate.score(method, {"scale": jnp.float32(1)}, memory_of(5), Source(4), plus_one, 4, 2, progress=False)


def test_results_count_what_they_say():
    correct = [True, True, True, False]
    needed = [[1, 2, 3], [2, 4, 6], [3, 6, 9], [4, 8, 12]]
    scored = scored_of([0.9, 0.8, 0.7, 0.6], correct, size=[1, 3, 4, 10], needed=needed)
    results = evaluate.results(scored, NAMES)
    assert results["examples"] == 4
    assert results["accuracy"] == {"encoder": 0.75, "prototypes": 0.75}
    assert results["prototypes_for"] == {"50": 2.5, "90": 5.0, "95": 7.5}
    support = results["support"]
    assert (support["median"], support["mean"], support["max"]) == (3.5, 4.5, 10)
    counts = dict(zip(support["distribution"]["edges"], support["distribution"]["counts"], strict=False))
    assert {size for size, count in counts.items() if count} == {1, 3, 4, 10}
    confidence = results["confidence"]
    assert confidence["mean"] == pytest.approx(0.75)
    assert confidence["right"] == pytest.approx(0.8) and confidence["wrong"] == pytest.approx(0.6)
    # Every example alone in its bin of a fifteenth.
    assert confidence["ece"] == pytest.approx((0.1 + 0.2 + 0.3 + 0.6) / 4)
    assert results["ece"]["prototypes"] == pytest.approx(confidence["ece"])
    assert confidence["auroc"] == 1.0
    assert results["auc"] is None and "auc" not in results["coverage_curve"]


def test_a_coverage_curve_is_that_of_the_paper():
    confidence = np.array([0.0, 0.2, 0.5, 0.995, 0.999], np.float32)
    correct = np.array([False, False, True, True, True])
    curve = evaluate.coverage(confidence, correct)
    thresholds = curve["thresholds"]
    assert thresholds[0] == 0 and thresholds[-1] == 0.999 and thresholds == sorted(thresholds)
    for threshold, accuracy, share in zip(thresholds, curve["accuracy"], curve["share"], strict=True):
        kept = confidence >= np.float32(threshold)
        assert share == pytest.approx(kept.mean())
        assert accuracy == pytest.approx(correct[kept].mean())


def test_where_nothing_is_kept_accuracy_is_null():
    curve = evaluate.coverage(np.array([0.5], np.float32), np.array([True]))
    assert curve["share"][-1] == 0 and curve["accuracy"][-1] is None and curve["accuracy"][0] == 1


def test_two_classes_have_an_auc():
    scored = scored_of([0.9, 0.8, 0.7, 0.6, 0.55], [True, False, True, False, False], classes=2)
    results = evaluate.results(scored, ("no", "yes"))
    # Positive scores .2 .4 .45, negative .1 .3: five of the six pairs are in order.
    assert results["auc"] == {"positive": "yes", "encoder": pytest.approx(5 / 6), "prototypes": pytest.approx(5 / 6)}
    auc = dict(zip(results["coverage_curve"]["thresholds"], results["coverage_curve"]["auc"], strict=True))
    # From 0.7 on remain a positive between two negatives; above 0.8 a negative alone.
    assert auc[0.0] == pytest.approx(5 / 6) and auc[0.69] == 0.5 and auc[0.85] is None


def test_a_method_without_support_has_no_numbers_of_prototypes():
    scored = scored_of([0.9, 0.4], [True, False], size=[0, 0], needed=[[-1] * 3, [-1] * 3])
    results = evaluate.results(scored, NAMES)
    assert results["accuracy"] == {"encoder": 0.5, "prototypes": None}
    assert set(results["prototypes_for"].values()) == {None} and set(results["support"].values()) == {None}
    assert results["ece"]["prototypes"] is None and results["ece"]["encoder"] is not None


def test_a_share_that_most_never_reach_has_no_median():
    results = evaluate.results(scored_of([0.9] * 3, [True] * 3, needed=[[1, 3, -1], [1, -1, -1], [1, 5, 7]]), NAMES)
    assert results["prototypes_for"] == {"50": 1.0, "90": 5.0, "95": None}


@pytest.mark.parametrize("correct", [True, False])
def test_results_are_valid_json_where_a_mean_is_undefined(correct):
    results = evaluate.results(scored_of([0.5, 0.7], [correct] * 2), NAMES)
    json.dumps(results, allow_nan=False)
    assert results["confidence"]["wrong" if correct else "right"] is None
    assert results["confidence"]["auroc"] is None


def test_large_supports_are_counted_in_growing_bins():
    size = np.random.default_rng(0).integers(1, 40000, 500)
    distribution = evaluate.results(scored_of([0.5] * 500, [True] * 500, size=size), NAMES)["support"]["distribution"]
    assert len(distribution["counts"]) < 60 and sum(distribution["counts"]) == 500
    assert distribution["edges"][-1] > size.max()


def test_reliability_explains_the_calibration_error():
    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.uniform(0.4, 1, 300), np.arange(16) / 15]).astype(np.float32)
    results = evaluate.results(scored_of(confidence, rng.uniform(size=316) < confidence), NAMES)
    bins = results["reliability"]["confidence"]
    gaps = [
        n / 316 * abs(c - a) for n, c, a in zip(bins["counts"], bins["confidence"], bins["accuracy"], strict=True) if n
    ]
    assert sum(gaps) == pytest.approx(results["confidence"]["ece"], abs=1e-6)


def test_labels_of_another_data_set_are_refused():
    scored = scored_of([0.5, 0.5], [True, True])._replace(labels=np.array([0, 7], np.int32))
    with pytest.raises(ValueError, match="example 1 has label 7, but the classes are 0 to 2"):
        evaluate.results(scored, NAMES)
    with pytest.raises(ValueError, match="3 classes were scored, but there are 2 label names"):
        evaluate.results(scored, NAMES[:2])


def test_shift_compares_confidence_alone():
    test, shifted = scored_of([0.9, 0.8, 0.5], [True] * 3), scored_of([0.8, 0.3], [False] * 2)
    shifted = shifted._replace(labels=np.array([99, 99], np.int32))
    shift = evaluate.shift(test, shifted)
    # Of the six pairs four have the test example above and one is a tie (0.8), one is below (0.5 under 0.8).
    assert shift["auroc"] == pytest.approx(4.5 / 6)
    assert shift["examples"] == {"test": 3, "shifted": 2}
    at = shift["levels"].index(0.8)
    assert shift["share"]["test"][at] == pytest.approx(2 / 3) and shift["share"]["shifted"][at] == 0.5
    assert shift["share"]["test"][0] == 1 and shift["mean"]["shifted"] == pytest.approx(0.55)


def test_every_curve_is_drawn(tmp_path):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 60)
    scored = scored_of(confidence, rng.uniform(size=60) < confidence, classes=2, size=rng.integers(1, 9, 60))
    results = evaluate.results(scored, ("no", "yes"))
    results["shift"] = {"rotated 90": evaluate.shift(scored, scored_of(rng.uniform(size=40), [True] * 40))}
    curve = results["coverage_curve"]
    results["neighbours"] = {
        "k": 5,
        "coverage_curve": {"method": curve, "neighbours_confidence": curve, "neighbours_credibility": curve},
    }
    files = figures.evaluation(tmp_path / "figures", results)
    names = {"coverage_curve", "reliability", "confidence", "support_size", "shift", "neighbours"}
    assert {file.stem for file in files} == names
    for file in files:
        pixels = np.asarray(Image.open(file).convert("L"))
        assert min(pixels.shape) > 500 and pixels.std() > 5


def test_a_method_without_support_is_drawn_without_it(tmp_path):
    scored = scored_of([0.9, 0.4], [True, True], size=[0, 0])
    files = figures.evaluation(tmp_path, evaluate.results(scored, NAMES))
    assert {file.name for file in files} == {"coverage_curve.png", "reliability.png", "confidence.png"}
