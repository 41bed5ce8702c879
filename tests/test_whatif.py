"""What-if questions: what they answer is what scoring everything with the edited database says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from protojax import config, contrast, data, database, methods, readable, step, whatif
from protojax.opened import Opened, preparation, score
from protojax.whatif import Edits

WIDTH = 8


def opened_with(**method):
    """A run with random parameters on the digits, sharp enough for sparse supports."""
    tree = {
        "name": "tiny",
        "encoder": {"kind": "conv", "filters": (8,), "dense": (16,)},
        "method": {"kind": "protoattend", "key_size": 8, "value_size": 8, **method},
        "train": {"candidate_count": 8, "batch_size": 8},
        "evaluate": {"candidate_count": 400},
        "explain": {"width": WIDTH},
    }
    settings = config.from_tree(tree, "test")
    dataset = data.load(settings.data)
    state = step.fresh(settings, dataset)
    if method.get("normalizer") != "softmax":
        state.params["query"]["kernel"] *= 25
    built, transform = methods.build(settings, 10), preparation(settings, dataset)
    chosen = database.choose(len(dataset.train), 400, 0)
    memory = database.build(built, state.variables, dataset.train, chosen, transform, 256, progress=False)
    return Opened(None, settings, dataset, built, state, memory, transform)


@pytest.fixture(scope="module")
def opened():
    return opened_with()


@pytest.fixture(scope="module")
def used(opened):
    """Candidates by how often they are listed, most often first; and one that nobody leans on."""
    scored = score(opened, opened.dataset.test, quiet=True, width=opened.memory.capacity)
    assert (scored.support.size <= WIDTH).any() and (scored.support.size > WIDTH).any()
    ids, counts = np.unique(scored.support.ids[scored.support.ids >= 0], return_counts=True)
    unused = np.setdiff1d(np.asarray(opened.memory.ids), ids)
    return ids[np.argsort(-counts)].tolist(), int(unused[0])


def label_of(opened, id):
    return int(opened.memory.labels[int(np.flatnonzero(np.asarray(opened.memory.ids) == id)[0])])


def other_label(opened, id):
    return (label_of(opened, id) + 1) % 10


def rescored(opened, edits):
    """Everything scored with the edited database, supports in full."""
    memory = opened.memory
    if edits.remove:
        memory = memory.remove(edits.remove)
    if edits.relabel:
        memory = memory.relabel(list(edits.relabel), list(edits.relabel.values()))
    return score(opened._replace(memory=memory), opened.dataset.test, quiet=True, width=opened.memory.capacity)


def test_the_answer_is_that_of_scoring_everything(opened, used):
    ids, _ = used
    edits = Edits((ids[0], ids[-1]), {ids[1]: other_label(opened, ids[1])})
    answer = whatif.ask(opened, edits, quiet=True)
    assert 0 < len(answer.recomputed) < len(answer.before.ids)
    full = rescored(opened, edits)
    after = jax.tree.map(np.copy, answer.before)
    width = answer.after.support.ids.shape[1]
    for mine, new in zip(jax.tree.leaves(after), jax.tree.leaves(answer.after), strict=True):
        mine[answer.recomputed] = new
    np.testing.assert_array_equal(after.predicted, full.predicted)
    np.testing.assert_array_equal(after.support.size, full.support.size)
    np.testing.assert_array_equal(after.support.ids, full.support.ids[:, :width])
    np.testing.assert_array_equal(after.support.labels, full.support.labels[:, :width])
    np.testing.assert_allclose(after.support.weights, full.support.weights[:, :width], atol=1e-6)
    np.testing.assert_allclose(after.confidence, full.confidence, atol=1e-6)
    rows = np.isin(answer.before.support.ids, [*edits.remove, *edits.relabel]).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(rows), answer.recomputed)


def test_the_records_say_what_changes(opened, used):
    ids, _ = used
    edits = Edits((ids[0],), {ids[1]: other_label(opened, ids[1])})
    answer = whatif.ask(opened, edits, quiet=True)
    record = json.loads(json.dumps(whatif.records(answer, opened), allow_nan=False))
    assert record["schema"] == "protojax.what_if/1"
    assert record["edits"]["remove"] == [{"id": ids[0], "label": label_of(opened, ids[0])}]
    relabelled = {"id": ids[1], "from": label_of(opened, ids[1]), "to": other_label(opened, ids[1])}
    assert record["edits"]["relabel"] == [relabelled]
    assert record["examples"] == len(opened.dataset.test)
    assert record["recomputed"] == len(answer.recomputed) == len(record["changed"])
    assert record["unchanged_by_proof"] == record["examples"] - record["recomputed"]
    classes = ["class" in decision["changes"] for decision in record["changed"]]
    assert classes == sorted(classes, reverse=True)
    for decision in record["changed"]:
        position = int(np.flatnonzero(answer.before.ids == decision["id"])[0])
        row = int(np.flatnonzero(answer.recomputed == position)[0])
        assert decision["before"]["predicted"] == answer.before.predicted[position]
        assert decision["after"]["predicted"] == answer.after.predicted[row]
        assert decision["after"]["support_size"] == answer.after.support.size[row]
        weights = {p["id"]: p["weight"] for p in decision["prototypes"]}
        for side, scored, i in (("before", answer.before, position), ("after", answer.after, row)):
            listed = scored.support.weights[i] > 0
            expected = dict(zip(scored.support.ids[i, listed].tolist(), scored.support.weights[i, listed], strict=True))
            assert {id for id, w in weights.items() if w[side]} == set(expected)
            assert all(weights[id][side] == pytest.approx(w, abs=1e-6) for id, w in expected.items())
        if ids[0] in weights:
            assert weights[ids[0]]["after"] == 0


def test_a_candidate_that_nobody_leans_on_changes_nothing(opened, used):
    _, unused = used
    answer = whatif.ask(opened, Edits((unused,), {}), quiet=True)
    record = whatif.records(answer, opened)
    assert (record["recomputed"], record["changed"]) == (0, [])
    assert record["unchanged_by_proof"] == record["examples"]
    assert record["accuracy"]["before"] == record["accuracy"]["after"]
    full = rescored(opened, Edits((unused,), {}))
    np.testing.assert_array_equal(full.predicted, answer.before.predicted)
    assert "0 change, 0 of them their class" in "\n".join(contrast.table(record))


def test_a_label_changes_confidence_and_no_class(opened, used):
    ids, _ = used
    answer = whatif.ask(opened, Edits((), {ids[0]: other_label(opened, ids[0])}), quiet=True)
    np.testing.assert_array_equal(answer.after.predicted, answer.before.predicted[answer.recomputed])
    record = whatif.records(answer, opened)
    assert record["changed"]
    assert all("prototypes" in decision["changes"] for decision in record["changed"])
    labels = [p["label"] for d in record["changed"] for p in d["prototypes"] if p["id"] == ids[0]]
    assert all(x == {"before": label_of(opened, ids[0]), "after": other_label(opened, ids[0])} for x in labels)


def test_some_decisions_alone(opened, used):
    ids, _ = used
    everything = whatif.ask(opened, Edits((ids[0],), {}), quiet=True)
    asked = everything.before.ids[[everything.recomputed[0], int(np.argmax(everything.before.support.size < 3))]]
    some = whatif.records(whatif.ask(opened, Edits((ids[0],), {}), ids=asked.tolist(), quiet=True), opened)
    assert some["examples"] == 2
    whole = {d["id"]: d for d in whatif.records(everything, opened)["changed"]}
    for decision in some["changed"]:
        assert decision["after"]["predicted"] == whole[decision["id"]]["after"]["predicted"]
        assert decision["after"]["confidence"] == pytest.approx(whole[decision["id"]]["after"]["confidence"], abs=1e-5)


def test_nothing_is_proved_where_everything_is_computed(opened, used):
    ids, _ = used
    edits = Edits((ids[0],), {})
    everything = whatif.ask(opened, edits, quiet=True)
    leaning = everything.before.ids[everything.recomputed[:2]].tolist()
    record = whatif.records(whatif.ask(opened, edits, ids=leaning, quiet=True), opened)
    assert (record["examples"], record["recomputed"], record["unchanged_by_proof"]) == (2, 2, 0)
    printed = "\n".join(contrast.table(record))
    assert "  all were computed anew:\n  each gives an edited candidate a weight" in printed
    assert "cannot change" not in printed and "0 were not" not in printed


def test_many_edits_are_not_all_named(opened, used):
    ids, unused = used
    labels = {id: other_label(opened, id) for id in ids[10:18]}
    answer = whatif.ask(opened, Edits((*ids[:7], unused), labels), ids=opened.dataset.test.ids[:4].tolist(), quiet=True)
    record = whatif.records(answer, opened)
    asked = contrast.question(record)
    removed, relabelled = asked.split(", with ")
    assert removed.endswith(f"{ids[4]} ({label_of(opened, ids[4])}) and 3 more") and removed.count("(") == 5
    assert relabelled.endswith(" and 3 more") and relabelled.count(";") == 4
    assert contrast.table(record)[0].startswith(f"{asked}: 4 decisions")
    assert len(record["edits"]["remove"]) == len(record["edits"]["relabel"]) == 8


def test_with_softmax_every_decision_is_computed_anew():
    opened = opened_with(normalizer="softmax")
    removed = int(opened.memory.ids[7])
    ids = opened.dataset.test.ids[:20].tolist()
    record = whatif.records(whatif.ask(opened, Edits((removed,), {}), ids=ids, quiet=True), opened)
    assert (record["examples"], record["recomputed"], record["unchanged_by_proof"]) == (20, 20, 0)
    assert "softmax gives every candidate a weight" in record["proof"]
    assert "  all were computed anew:" in contrast.table(record)
    # Of weights that are not listed nothing is said.
    weights = [p["weight"] for d in record["changed"] for p in d["prototypes"]]
    assert all(w["before"] is not None or w["after"] is not None for w in weights)
    assert all(p["id"] != removed or p["weight"]["after"] is None for d in record["changed"] for p in d["prototypes"])


def test_pictures_and_a_table(opened, used, tmp_path):
    ids, _ = used
    answer = whatif.ask(opened, Edits((ids[0],), {ids[1]: other_label(opened, ids[1])}), quiet=True)
    record = whatif.records(answer, opened)
    (tmp_path / "what_if-9.png").write_text("old")
    files = contrast.write(tmp_path, record, readable.everything(opened.dataset), count=8)
    assert [file.name for file in files] == ["what_if.json", "what_if.png", "what_if-2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["what_if-2.png", "what_if.json", "what_if.png"]
    assert json.loads(files[0].read_text())["unchanged_by_proof"] == record["unchanged_by_proof"]
    lines = contrast.table(record, count=5)
    assert lines[0].startswith(f"without {ids[0]} (")
    assert lines[-1] == f"and {len(record['changed']) - 5} more, see what_if.json"
    assert f"{ids[0]} (" in "\n".join(lines[5:])


def test_the_wrong_question_is_named(opened, used):
    (first, second, *_), _ = used
    known = {first: other_label(opened, first)}
    for edits, message in [
        (Edits((), {}), "nothing to ask about"),
        (Edits((first, 99999), {}), r"ids \[99999\] are not in the database"),
        (Edits((), {99999: 3}), r"ids \[99999\] are not in the database"),
        (Edits((first,), known), f"id {first} is to be removed and relabelled"),
        (Edits((), {first: 10}), f"id {first}: label 10 does not exist; the labels are 0 to 9"),
        (Edits((), {first: label_of(opened, first)}), f"id {first} has the label {label_of(opened, first)} already"),
        (Edits(tuple(np.asarray(opened.memory.ids).tolist()), {}), "no candidate would be left"),
    ]:
        with pytest.raises(ValueError, match=message):
            whatif.ask(opened, edits, quiet=True)
    with pytest.raises(ValueError, match="id 99999 is not in split test"):
        whatif.ask(opened, Edits((first,), {}), ids=[99999], quiet=True)
    encoder = opened.settings.model_copy(update={"method": config.EncoderBaselineSettings()})
    method = opened.method._replace(leans_on=None)
    with pytest.raises(ValueError, match="method.kind = 'encoder': what-if needs decisions that lean on training"):
        whatif.ask(opened._replace(settings=encoder, method=method), Edits((first,), {}), quiet=True)


def test_the_database_stays_as_it_is(opened, used):
    ids, _ = used
    before = jax.tree.map(np.asarray, opened.memory)
    whatif.ask(opened, Edits((ids[0],), {ids[1]: other_label(opened, ids[1])}), quiet=True)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, opened.memory))
    assert isinstance(opened.memory.ids, jnp.ndarray)
