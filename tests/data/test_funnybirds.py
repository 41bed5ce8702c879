"""FunnyBirds folders, small ones made of shapes: read, packed, prepared, and refused when they are not whole."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from protojax import cli
from protojax.data import funnybirds, prepare, shapes
from protojax.data.archive import unpacked
from protojax.data.source import DataError

CLASSES, TEST, TRAIN = 3, 6, 12
HIDDEN = 4


def _save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "birds"
    parts = funnybirds.PARTS
    classes = [
        {"class_idx": c, "parts": dict(zip(parts, map(int, shapes.CLASSES[c]), strict=True))} for c in range(CLASSES)
    ]
    folder.mkdir()
    (folder / "classes.json").write_text(json.dumps(classes))
    (folder / "parts.json").write_text("{}")
    for split, count in (("test", TEST), ("train", TRAIN)):
        params = []
        for index in range(count):
            # Every third training picture lacks a part.
            removed = [index % 5] if split == "train" and index % 3 == 0 else []
            models = {f"{part}_model": "placeholder" if p in removed else "x" for p, part in enumerate(parts)}
            params.append({"class_idx": index % CLASSES, "index": index, "bg_objects": "2,0,", **models})
            animal = shapes.draw(index % CLASSES, 100 * (split == "train") + index, removed)
            _save(folder / split / str(index % CLASSES) / f"{index:06}.png", animal.image)
            if split == "test":
                _test_scene(folder, index)
        (folder / f"params_{split}.json.gz").write_bytes(gzip.compress(json.dumps(params).encode()))
    return folder


def _test_scene(folder, index):
    label, name = index % CLASSES, f"{index:06}"
    animal = shapes.draw(label, index, [2] if index == HIDDEN else [])
    colours = np.zeros((32, 32, 3), np.uint8)
    for part, own in enumerate(funnybirds.PARTS):
        # Of pieces that come in twos, the upper half is the first.
        pieces = [piece for piece in funnybirds.PIECES if piece.part == own]
        rows = np.flatnonzero(animal.masks[part].any(axis=1))
        for piece, half in zip(pieces, np.array_split(rows, len(pieces)), strict=True):
            mask = np.zeros((32, 32), bool)
            mask[half] = animal.masks[part][half]
            colours[mask] = piece.rgb
    for number in range(shapes.OBJECTS):
        colours[animal.object_masks[number]] = (204, 204, 204 + number)
    # The colour of an antialiased edge belongs to nothing.
    colours[0, 0] = (255, 128, 0)
    _save(folder / "test_part_map" / str(label) / f"{name}.png", colours)
    scene = folder / "test_interventions" / str(label) / name
    for part in range(5):
        kept = "_".join(p for i, p in enumerate(funnybirds.PARTS) if i != part)
        _save(scene / f"body_{kept}.png", shapes.draw(label, index, [part]).image)
    _save(scene / "background_interventions" / "1.png", shapes.draw(label, index, (), [1]).image)


def test_a_folder_is_read(root):
    found = funnybirds.read(root)
    np.testing.assert_array_equal(found.classes, shapes.CLASSES[:CLASSES])
    assert [s.split for s in found.scenes] == ["test"] * TEST + ["train"] * TRAIN
    assert [s.index for s in found.scenes] == [*range(TEST), *range(TRAIN)]
    assert found.label_names == ("class 0", "class 1", "class 2")
    test, train = found.scenes[1], found.scenes[TEST + 3]
    assert test.label == 1 and test.removed == () and train.removed == ("tail",)
    assert len(test.interventions) == 5 and set(test.without_object) == {1} and test.objects == shapes.OBJECTS
    assert train.part_map is None and not train.interventions


def test_masks_are_those_of_the_legend(root):
    scene = funnybirds.read(root).scenes[1]
    animal = shapes.draw(1, 1)
    masks = funnybirds.piece_masks(scene)
    assert masks.shape == (8, 32, 32)
    for part in range(5):
        np.testing.assert_array_equal(masks[funnybirds.PART_OF == part].any(axis=0), animal.masks[part])
    np.testing.assert_array_equal(funnybirds.object_masks(scene), animal.object_masks)
    halved = funnybirds.piece_masks(scene, (16, 16))
    assert halved.shape == (8, 16, 16) and halved.any()
    hidden = funnybirds.piece_masks(funnybirds.read(root).scenes[HIDDEN])
    assert not hidden[funnybirds.PART_OF == 2].any()


def test_parts_are_taken_away(root):
    scene = funnybirds.read(root).scenes[2]
    for removed, rendered in (((), True), (("eye",), True), (("beak", "wing", "foot"), False)):
        image, found = funnybirds.without(scene, removed)
        places = [funnybirds.PARTS.index(part) for part in removed]
        np.testing.assert_array_equal(image, shapes.draw(2, 2, places).image)
        assert found == rendered
    with pytest.raises(DataError, match="'leg' is no part: the parts are beak, eye"):
        funnybirds.without(scene, ["leg"])
    scene.interventions.pop(frozenset(funnybirds.PARTS) - {"tail"})
    with pytest.raises(DataError, match=r"no picture without tail, .*expected body_beak_eye_foot_wing.jpg"):
        funnybirds.without(scene, ["tail", "eye"])
    with pytest.raises(DataError, match="has no part map; only test scenes have one"):
        funnybirds.piece_masks(funnybirds.read(root).scenes[TEST])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: (r / "classes.json").unlink(), "classes.json: missing; a FunnyBirds folder has one"),
        (lambda r: (r / "classes.json").write_text("[{"), "classes.json: cannot be read as JSON"),
        (lambda r: (r / "classes.json").write_text('[{"class_idx": 0, "parts": {}}]'), "a class lacks 'beak'"),
        (lambda r: (r / "params_test.json.gz").unlink(), "has test/ but neither dataset_test.json nor params_test"),
        (lambda r: (r / "test" / "7").mkdir(), "test/7: no class of this number; classes.json has 3"),
        (lambda r: (r / "test" / "1" / "a.txt").touch(), "a.txt: expected a picture named by its number"),
        (lambda r: (r / "test" / "0" / "000099.png").touch(), "test picture 99 is not described"),
        (
            lambda r: (r / "test" / "0" / "000000.png").rename(r / "test" / "1" / "000000.png"),
            "000000.png: lies with class 1, but is described as class 0",
        ),
        (
            lambda r: (r / "test_interventions" / "0" / "000000" / "bird.png").touch(),
            "bird.png: expected body_ and the parts kept, such as body_beak_eye.jpg",
        ),
    ],
)
def test_what_is_not_whole_is_named(root, change, message):
    change(root)
    with pytest.raises(DataError, match=message):
        funnybirds.read(root)


def test_a_tar_is_prepared_and_its_annotations_lie_beside(root, tmp_path, capsys):
    with tarfile.open(tmp_path / "birds.tar", "w") as archive:
        archive.add(root, "birds")
    sets = tmp_path / "sets"
    command = ["prepare", "funnybirds", str(tmp_path / "birds.tar"), "--name", "tiny", "--data-dir", str(sets)]
    assert cli.main([*command, "--validation", "0"]) == 0
    assert "prepared tiny: train 12, test 6" in capsys.readouterr().out
    folder = sets / "tiny" / "1.0.0"
    scenes = prepare.annotations(folder)
    examples = list(tfds.builder_from_directory(folder).as_data_source("test"))
    assert sorted(int(e["id"]) for e in examples) == sorted(scenes) == list(range(TEST))
    for example in examples:
        scene = scenes[int(example["id"])]
        np.testing.assert_array_equal(example["image"], funnybirds.picture(scene.image))
        assert example["label"] == scene.label and funnybirds.piece_masks(scene).any()
    removed = json.loads((folder / "funnybirds" / "ids.json").read_text())["removed"]
    assert removed["6"] == ["beak"] and len(removed) == 4
    assert cli.main([*command[:3], "--name", "again", "--data-dir", str(sets), "--label", "x"]) == 2
    assert "--label means nothing for funnybirds; leave it out" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"has no funnybirds/ids.json"):
        prepare.annotations(sets)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../out.txt", tarfile.REGTYPE, r"'../out.txt' leads out of the folder"),
        ("/out.txt", tarfile.REGTYPE, "'/out.txt' leads out of the folder"),
        ("birds/link", tarfile.SYMTYPE, "'birds/link' is a link or a device"),
        ("birds/link", tarfile.LNKTYPE, "'birds/link' is a link or a device"),
        ("birds/pipe", tarfile.FIFOTYPE, "'birds/pipe' is a link or a device"),
    ],
)
def test_a_tar_that_leads_out_is_refused_before_anything_is_written(tmp_path, name, kind, message):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as archive:
        good = tarfile.TarInfo("birds/good.txt")
        archive.addfile(good, io.BytesIO())
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member, io.BytesIO())
    with pytest.raises(DataError, match=message), unpacked(path):
        pass
    assert [p.name for p in tmp_path.rglob("*")] == ["evil.tar"]


def test_what_is_no_tar(tmp_path):
    (tmp_path / "a.tar").write_text("hello")
    with pytest.raises(DataError, match="a.tar: cannot be unpacked"), unpacked(tmp_path / "a.tar"):
        pass
    with pytest.raises(DataError, match="b.tar: no such file or folder"), unpacked(tmp_path / "b.tar"):
        pass
