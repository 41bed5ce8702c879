"""What a build on disk goes on from, on a folder of text files; see also the tests of databases and feature stores."""

import pydantic
import pytest

from protojax import resumable
from protojax.resumable import File


class Part(pydantic.BaseModel):
    files: list[File]


class Parts(pydantic.BaseModel):
    of: str
    shards: list[Part] = []


def save(folder, manifest):
    resumable.write(folder / "manifest.json", manifest)


def begun(folder, count=3):
    """Unfinished work with so many parts."""
    found = resumable.go_on(folder, None, Parts(of="this"), save)
    for number in range(count):
        (folder / f"{number}.txt").write_text(str(number))
        entry = File(file=f"{number}.txt", sha256=resumable.sha256_of(folder / f"{number}.txt"))
        found.shards.append(Part(files=[entry]))
    save(folder, found)
    return found


def read(folder):
    return Parts.model_validate_json((folder / "manifest.json").read_bytes())


def test_whole_parts_of_the_same_work_stay(tmp_path):
    found = begun(tmp_path / "work.partial")
    assert read(tmp_path / "work.partial") == found
    assert resumable.go_on(tmp_path / "work.partial", found, Parts(of="this"), save) == found
    assert resumable.place(tmp_path / "work") == tmp_path / "work.partial"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda path: path.unlink(), "1.txt: missing; made again, with what comes after it"),
        (lambda path: path.write_text("2"), "1.txt: damaged: its content is not what its manifest says; made again"),
    ],
)
def test_what_comes_after_a_damaged_part_is_made_again(tmp_path, harm, message):
    found = begun(tmp_path / "work")
    harm(tmp_path / "work" / "1.txt")
    with pytest.warns(UserWarning, match=message):
        left = resumable.go_on(tmp_path / "work", found, Parts(of="this"), save)
    assert [part.files[0].file for part in left.shards] == ["0.txt"]


def test_nothing_of_other_work_stays(tmp_path):
    found = begun(tmp_path / "work")
    other = Parts(of="that")
    assert resumable.go_on(tmp_path / "work", found, other, save) == other == read(tmp_path / "work")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(("rows", "batch_size", "expected"), [(10, 4, 8), (8, 4, 8), (3, 4, 4), (0, 4, 4), (7, 1, 7)])
def test_shards_are_whole_batches(rows, batch_size, expected):
    assert resumable.rows_of_whole_batches(rows, batch_size) == expected
