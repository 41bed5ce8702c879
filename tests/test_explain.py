"""Tests of protojax.explain, of the grids of protojax.figures and of protojax.tables."""

import json

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from protojax import explain, figures
from protojax.evaluate import Scored
from protojax.methods.method import Support

NAMES = ("cat", "dog", "owl")


class Source:
    """What a person reads of examples."""

    def __init__(self, ids, labels, shown):
        self.ids, self.labels, self._shown = np.asarray(ids, np.int32), np.asarray(labels, np.int32), shown

    def __len__(self) -> int:
        return len(self.ids)

    def show(self, i: int):
        return self._shown[i]


def one_hot(classes) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[np.asarray(classes)]


TRAIN_LABELS = (0, 0, 1, 1, 2)
SCORED = Scored(
    ids=np.array([30, 10, 20], np.int32),
    labels=np.array([0, 1, 2], np.int32),
    scores=one_hot([0, 0, 2]),
    encoder_scores=one_hot([0, 1, 2]),
    support=Support(
        # Training ids are 101 to 105; the third example leans on 9 candidates, of which 3 were kept.
        ids=np.array([[101, 102, -1], [102, 103, 101], [105, 104, 101]], np.int32),
        weights=np.array([[0.75, 0.25, 0], [0.6, 0.3, 0.1], [0.5, 0.25, 0.125]], np.float32),
        labels=np.array([[0, 0, -1], [0, 1, 0], [2, 1, 0]], np.int32),
        size=np.array([2, 3, 9], np.int32),
    ),
    confidence=np.array([1.0, 0.7, 0.5], np.float32),
    prototypes_for=np.ones((3, 3), np.int32),
)


def sources(kind: str) -> tuple[Source, Source]:
    if kind == "image":
        shown = load_digits().images[:8, :, :, None].astype(np.uint8) * 15
    elif kind == "text":
        shown = [f"text {i} | *bold* <b>" + "x" * 500 for i in range(8)]
    else:
        shown = [{"age": np.float32(40 + i % 2), "job": "clerk" if i < 5 else "smith"} for i in range(8)]
    # Training ids in descending order: a position is not an id.
    train = Source([105, 104, 103, 102, 101], TRAIN_LABELS[::-1], shown[:5])
    return Source(SCORED.ids, SCORED.labels, shown[5:]), train


def test_ids_select_in_their_order():
    np.testing.assert_array_equal(explain.select(SCORED, ids=[20, 30], count=1), [2, 0])


@pytest.mark.parametrize(("id", "nearest"), [(26, 30), (13, 10), (-5, 10), (2**40, 30)])
def test_an_unknown_id_is_named_with_its_nearest(id, nearest):
    message = rf"id {id} is not in the scored split, which holds 3 ids from 10 to 30; the nearest is {nearest}"
    with pytest.raises(ValueError, match=message):
        explain.select(SCORED, ids=[10, id])


def test_ids_allow_no_other_choice():
    with pytest.raises(ValueError, match="ids already name the decisions"):
        explain.select(SCORED, ids=[10], wrong=True)


def test_wrong_and_least_confident_decisions():
    np.testing.assert_array_equal(explain.select(SCORED, wrong=True), [1])
    np.testing.assert_array_equal(explain.select(SCORED, least_confident=2), [2, 1])
    np.testing.assert_array_equal(explain.select(SCORED, wrong=True, least_confident=1), [1])
    np.testing.assert_array_equal(explain.select(SCORED, count=2), [0, 1])
    assert len(explain.select(SCORED)) == len(explain.select(SCORED, count=12)) == 3


@pytest.mark.parametrize(("wrong", "asked", "message"), [(False, 4, "4 .* among 3 examples"), (True, 2, "1 wrong dec")])
def test_more_least_confident_than_there_are_is_refused(wrong, asked, message):
    with pytest.raises(ValueError, match=message):
        explain.select(SCORED, wrong=wrong, least_confident=asked)


def test_records_follow_the_schema():
    test, train = sources("image")
    records = explain.records(SCORED, np.array([1, 2]), test, train, NAMES)
    assert records["schema"] == "protojax.explanation/2" and records["label_names"] == list(NAMES)
    assert records["decisions"][0] == {
        "id": 10,
        "split": "test",
        "label": 1,
        "predicted": 0,
        "encoder_predicted": 1,
        "confidence": 0.7,
        "support_size": 3,
        "prototypes": [
            {"id": 102, "label": 0, "weight": 0.6, "wrong_label": True},
            {"id": 103, "label": 1, "weight": 0.3, "wrong_label": False},
            {"id": 101, "label": 0, "weight": 0.1, "wrong_label": True},
        ],
    }
    assert records["decisions"][1]["support_size"] == 9 and len(records["decisions"][1]["prototypes"]) == 3


def test_padding_is_no_prototype():
    records = explain.records(SCORED, np.array([0]), *sources("image"), NAMES)
    assert [p["id"] for p in records["decisions"][0]["prototypes"]] == [101, 102]


@pytest.mark.parametrize("kind", ["text", "table"])
def test_texts_and_rows_stand_in_the_records(kind):
    test, train = sources(kind)
    decision = json.loads(json.dumps(explain.records(SCORED, np.array([1]), test, train, NAMES)))["decisions"][0]
    assert decision["input"] == test.show(1)
    assert [p["input"] for p in decision["prototypes"]] == [train.show(3), train.show(2), train.show(4)]


def test_prototypes_of_another_training_split_are_refused():
    test, train = sources("image")
    with pytest.raises(ValueError, match="id 102 is not in the examples that prototypes come from, .* is 103"):
        explain.records(SCORED, np.array([1]), test, Source(train.ids[:3], train.labels[:3], []), NAMES)


def test_wrong_label_prototypes_of_the_whole_split():
    listed = explain.wrong_label_prototypes(SCORED, NAMES)
    assert listed["schema"] == "protojax.wrong_labels/1" and (listed["examples"], listed["width"]) == (3, 3)
    first, second = listed["decisions"]
    assert (first["id"], first["label"], first["predicted"]) == (10, 1, 0)
    assert first["wrong_weight"] == pytest.approx(0.7) and second["wrong_weight"] == 0.375
    assert second["prototypes"] == [{"id": 104, "label": 1, "weight": 0.25}, {"id": 101, "label": 0, "weight": 0.125}]
    assert [(p["id"], p["label"], p["decisions"]) for p in listed["by_prototype"]] == [
        (102, 0, 1),
        (104, 1, 1),
        (101, 0, 2),
    ]
    assert listed["by_prototype"][2]["weight"] == pytest.approx(0.225)


def test_no_wrong_label_is_an_empty_list(tmp_path):
    right = SCORED._replace(labels=np.array([0, 0, 2], np.int32))
    right = right._replace(support=right.support._replace(labels=np.tile(right.labels[:, None], 3)))
    listed = explain.wrong_label_prototypes(right, NAMES)
    assert listed["decisions"] == [] and listed["by_prototype"] == []
    files = explain.write(tmp_path, right, np.arange(3), *sources("image"), NAMES)
    assert [file.name for file in files] == ["explanations.json", "wrong_labels.json", "explanations.png"]


def red(path) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return (pixels[..., 0] > 150) & (pixels[..., 1:].max(axis=-1) < 60)


def test_images_make_a_grid_with_red_frames(tmp_path):
    files = explain.write(tmp_path, SCORED, np.array([0, 1]), *sources("image"), NAMES)
    assert {file.name for file in files} == {
        "explanations.json",
        "explanations.png",
        "wrong_labels.json",
        "wrong_labels.png",
    }
    marks = red(tmp_path / "explanations.png")
    # A frame is 150 pixels wide and 6 thick; the first decision has none, the second two.
    runs = (marks.sum(axis=1) > 2 * 140) & (marks.sum(axis=1) < 3 * 160)
    assert 8 <= runs.sum() <= 16 and not marks[: len(marks) // 2].any()
    assert json.loads((tmp_path / "explanations.json").read_text())["decisions"][1]["id"] == 10


def test_many_decisions_fill_several_pictures(tmp_path):
    test, train = sources("image")
    many = np.arange(3).repeat(9)
    files = explain.write(tmp_path, SCORED, many, test, train, NAMES)
    pages = sorted(file.name for file in files if file.name.startswith("explanations") and file.suffix == ".png")
    assert pages == ["explanations-2.png", "explanations-3.png", "explanations.png"]
    explain.write(tmp_path, SCORED, many[:2], test, train, NAMES)
    assert not (tmp_path / "explanations-2.png").exists()


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (32, 32, 3), (90, 60, 3)])
def test_images_of_every_shape_are_drawn(tmp_path, shape):
    image = np.full(shape, 128, np.uint8)
    image[0] = 255
    cells = [figures.Cell(image, "0.50", "a label so long that it needs two lines and more", 7, True)] * 8
    row = figures.Row(image, [("a $ sign, and another $", False)], cells, "+ 3 more\n(shown: 0.90)")
    path = figures.grid(tmp_path / "grid.png", "Title", [row])
    pixels = np.asarray(Image.open(path).convert("L"))
    # The query is 150 pixels high or wide, mid-grey, and close to the left edge.
    assert ((pixels[:, :180] > 120) & (pixels[:, :180] < 136)).sum() > 0.5 * 150 * 150


def test_a_long_title_makes_lines_and_no_enormous_picture(tmp_path):
    image = np.full((8, 8), 128, np.uint8)
    row = figures.Row(image, [], [figures.Cell(image, "0.50", "cat", 7, False)], "")

    def drawn(words):
        path = figures.grid(tmp_path / "grid.png", " ".join(["word"] * words), [row])
        return np.asarray(Image.open(path).convert("L"))

    short, longer, longest = (drawn(words) for words in (1, 20, 400))
    # 12 inches at most; the height grows by the lines alone.
    assert short.shape[1] < longer.shape[1] < longest.shape[1] == 12 * 150
    more = longest.shape[0] - short.shape[0]
    assert short.shape[0] == longer.shape[0] and 0 < more < 4 * 150
    # The added space holds the lines, and ends above the query.
    assert (longest[:more] < 60).any(axis=1).mean() > 0.4
    np.testing.assert_array_equal(longest[-short.shape[0] // 2 :, :150], short[-short.shape[0] // 2 :, :150])


def test_a_text_table_can_be_read(tmp_path):
    explain.write(tmp_path, SCORED, np.array([1]), *sources("text"), NAMES)
    lines = (tmp_path / "explanations.md").read_text().splitlines()
    assert "label: dog · predicted wrongly: cat · encoder alone: dog · confidence: 0.70" in lines
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + 1 + 3
    assert rows[2].startswith(r"| **input** |  | 10 | dog | text 6 \| \*bold\* \<b>xxx")
    assert rows[3].startswith("| 1 | 0.60 | 102 | ≠ cat | text 3 ") and rows[4].startswith("| 2 | 0.30 | 103 | dog | ")
    assert rows[3].endswith("x… (+ 119 characters) |")
    assert not list(tmp_path.glob("*.png"))


def test_a_row_table_marks_what_is_equal(tmp_path):
    explain.write(tmp_path, SCORED, np.array([2]), *sources("table"), NAMES)
    text = (tmp_path / "explanations.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[0] == "|  | weight | id | label | same of 2 | age | job |"
    assert rows[2] == "| **input** |  | 20 | owl |  | 41 | smith |"
    assert rows[3] == "| 1 | 0.50 | 105 | owl | 0 | 40 | clerk |"
    assert rows[4] == "| 2 | 0.25 | 104 | ≠ dog | 1 | **41** | clerk |"
    assert "+ 6 more (shown: 0.88)" in text


def test_a_decision_without_support_is_shown(tmp_path):
    nothing = np.full((3, 3), -1, np.int32)
    bare = SCORED._replace(support=Support(nothing, np.zeros((3, 3), np.float32), nothing, np.zeros(3, np.int32)))
    for kind in ("image", "text", "table"):
        explain.write(tmp_path / kind, bare, np.arange(3), *sources(kind), NAMES)
    assert "no prototypes" in (tmp_path / "text" / "explanations.md").read_text()
    assert json.loads((tmp_path / "image" / "explanations.json").read_text())["decisions"][0]["prototypes"] == []


def test_prototypes_of_a_method_itself_have_numbers_and_no_wrong_label(tmp_path):
    numbers = np.where(SCORED.support.weights > 0, np.arange(3) + 4, -1)
    own = SCORED._replace(support=SCORED.support._replace(prototypes=numbers))
    (tmp_path / "wrong_labels.json").write_text("of an older version")
    (tmp_path / "wrong_labels_reviewed.json").write_text("by hand")
    files = explain.write(tmp_path, own, np.arange(3), *sources("text"), NAMES)
    assert [file.name for file in files] == ["explanations.json", "explanations.md"]
    assert {file.name for file in tmp_path.iterdir()} == {
        "explanations.json",
        "explanations.md",
        "wrong_labels_reviewed.json",
    }
    listed = json.loads((tmp_path / "explanations.json").read_text())["decisions"][0]["prototypes"]
    assert [(p["prototype"], p["id"], p["wrong_label"]) for p in listed] == [(4, 101, None), (5, 102, None)]
    text = (tmp_path / "explanations.md").read_text()
    assert "# Decisions on the test split: prototypes by number, with the training example nearest to each" in text
    assert "4, near cat" in text and "≠" not in text
