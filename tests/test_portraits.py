import json

import numpy as np

from protojax import figures, portraits
from protojax.portraits import Subject


def drawn(monkeypatch, tmp_path, views, **more):
    """The figures by name, and the record."""
    kept = {}
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.setdefault(path.stem, figure) and path)
    subjects = [Subject(i, i % 2, np.full((4, 4, 1), 100 * i, np.uint8)) for i in range(3)]
    portraits.write(tmp_path, views, subjects, ["cat", "dog"], **more)
    return kept, json.loads((tmp_path / "portraits.json").read_text())


def test_pictures_stand_under_the_names_of_their_classes(monkeypatch, tmp_path):
    images = np.random.default_rng(0).uniform(0, 1, (3, 4, 4, 1))
    views = {"reconstructions": images, "attention_in_image": images[..., 0]}
    kept, record = drawn(monkeypatch, tmp_path, views, deformed=images)
    assert kept.keys() == {"reconstructions", "deformed", "attention"}
    for name, rows in (("reconstructions", 2), ("deformed", 2), ("attention", 3)):
        titles = [axes.get_title() for axes in kept[name].axes]
        # Of attention, the colour bar comes last.
        assert titles == ["cat", "dog", "cat"] + [""] * (3 * (rows - 1) + (name == "attention"))
    shown = kept["reconstructions"].axes[4].images[0].get_array()
    np.testing.assert_allclose(shown, images[1, ..., 0])
    for name in ("reconstructions", "deformed"):
        np.testing.assert_allclose(record["views"][name], images, atol=1e-6)
    assert record["images"] == [{"id": i, "label": i % 2} for i in range(3)]


def test_attention_is_drawn_on_one_scale_about_equal_attention(monkeypatch, tmp_path):
    heat = np.ones((3, 4, 4))
    heat[0, 0, 0], heat[2, 3, 3] = 4.0, 0.5
    views = {"reconstructions": np.zeros((3, 4, 4, 1)), "attention_in_image": heat}
    kept, _ = drawn(monkeypatch, tmp_path, views)
    shown = [axes.images[1] for axes in kept["attention"].axes[3:6]]
    np.testing.assert_allclose([image.get_array() for image in shown], np.log2(heat))
    assert [image.get_clim() for image in shown] == [(-2, 2)] * 3
    assert [text.get_text() for text in kept["attention"].axes[-1].get_yticklabels()] == ["0.25", "1", "4"]


def test_what_is_not_there_is_none_in_the_record(monkeypatch, tmp_path):
    _, record = drawn(monkeypatch, tmp_path, {"nearest_distances": np.array([[0.25, np.inf]])})
    assert record["views"]["nearest_distances"] == [[0.25, None]]


def test_logits_are_shown_without_what_all_classes_share(monkeypatch, tmp_path):
    logits = np.array([[501.0, 499.0], [30.0, 40.0], [7.0, 7.0]])
    kept, record = drawn(monkeypatch, tmp_path, {"image_to_class": logits})
    shown = kept["image_to_class"].axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, [[1, -1], [-5, 5], [0, 0]])
    assert record["views"]["image_to_class"] == logits.tolist()
