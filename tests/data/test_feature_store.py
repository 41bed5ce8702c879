"""A store of features on disk: written shard by shard, finished after an interruption, and never read half."""

import filecmp
import resource

import numpy as np
import pytest
import tensorflow_datasets as tfds

from protojax.data import DataError, DataSet, Info, feature_store, feature_writer
from protojax.data.feature_stamp import SCHEMA, Stamp

SHAPE = (2, 2, 3)
STAMP = Stamp(
    schema=SCHEMA,
    network="none",
    weights_sha256="0" * 64,
    precision="float32",
    image_size=[8, 8],
    crop=1.0,
    interpolation="linear",
    mean=[0.0, 0.0, 0.0],
    std=[1.0, 1.0, 1.0],
    views=1,
    augment={},
    seed=0,
    data="numbers:1.0.0",
    data_fingerprint="f" * 32,
    shape=list(SHAPE),
)


class Features:
    """Numbers drawn by id and view, instead of what a backbone makes of images; may stop as Ctrl-C does."""

    def __init__(self, count, first, stops_at=None):
        self.ids = np.arange(first, first + count)
        self.labels = self.ids % 2
        self.stops_at = stops_at
        self.asked = []

    def __len__(self):
        return len(self.ids)

    def many(self, positions):
        for position in positions:
            if len(self.asked) == self.stops_at:
                raise KeyboardInterrupt
            self.asked.append(position)
            view, place = divmod(position, len(self))
            inputs = np.random.default_rng([self.ids[place], view]).standard_normal(SHAPE).astype(np.float32)
            yield {"id": self.ids[place], "inputs": inputs, "label": self.labels[place]}


def dataset(stops_at=None):
    """19 training examples with one further view, no validation split, 5 test examples."""
    info = Info("numbers", "1.0.0", "features", ("even", "odd"), SHAPE, "f" * 32, {})
    return DataSet(info, Features(19, 0, stops_at), None, Features(5, 100))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    # Of 10 records, of which 8 are whole batches of 4.
    monkeypatch.setattr(feature_writer, "SHARD_BYTES", 10 * 4 * 12)


def write(folder, data, stamp=STAMP, **options):
    return feature_writer.write(folder, data, stamp, 4, **options)


def begun(tmp_path, stops_at=21):
    """A store whose third shard was interrupted."""
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "store", dataset(stops_at))
    return tmp_path / "store.partial" / "1.0.0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_writer, "SHARD_BYTES", 10 * 4 * 12)
        assert write(folder, dataset()) == {"train": 38, "test": 5}
    return folder / "1.0.0"


def same_files(one, other):
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


def test_shards_are_whole_batches_and_plain_tfds_reads_them(whole):
    lengths = tfds.builder_from_directory(whole).info.splits["train"].shard_lengths
    assert lengths == [8, 8, 8, 8, 6]
    record = tfds.builder_from_directory(whole).as_data_source("train")[19 + 7]
    assert (record["id"], record["view"], record["label"]) == (7, 1, 1)
    data = dataset()
    splits, shape = feature_store.read(whole.parent, data, STAMP)
    assert shape == SHAPE and splits[1] is None
    np.testing.assert_array_equal(splits[0][19 + 7]["inputs"], next(data.train.many([19 + 7]))["inputs"])
    np.testing.assert_array_equal(record["features"], splits[0][19 + 7]["inputs"])


def test_one_batch_at_least_makes_a_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_writer, "SHARD_BYTES", 1)
    write(tmp_path / "store", dataset())
    assert tfds.builder_from_directory(tmp_path / "store" / "1.0.0").info.splits["test"].shard_lengths == [4, 1]


def test_an_interrupted_store_goes_on_and_has_the_same_bytes(tmp_path, whole):
    version = begun(tmp_path)
    (version / "store-train.array_record-00002-of-00005.tmp").write_bytes(b"half a shard")
    again = dataset()
    assert write(tmp_path / "store", again) == {"train": 38, "test": 5}
    assert again.train.asked == list(range(16, 38))
    assert same_files(tmp_path / "store" / "1.0.0", whole)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_it_may_be_interrupted_at_any_place(tmp_path, whole, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    # In the first shard, behind the last one, and before the finished store gets its name.
    begun(tmp_path, stops_at=3)
    for step in ("describe", "install"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"protojax.data.tfds_files.{step}", interrupted)
            write(tmp_path / "store", dataset())
        assert not (tmp_path / "store").exists()
    last = dataset()
    write(tmp_path / "store", last)
    assert last.train.asked == [] and same_files(tmp_path / "store" / "1.0.0", whole)


def test_batches_of_another_size_throw_nothing_away(tmp_path):
    begun(tmp_path)
    again = dataset()
    feature_writer.write(tmp_path / "store", again, STAMP, 5)
    assert again.train.asked == list(range(16, 38))


def test_a_damaged_shard_is_named_and_written_again(tmp_path, whole):
    version = begun(tmp_path)
    damaged = version / "store-train.array_record-00001-of-00005"
    content = bytearray(damaged.read_bytes())
    content[300] ^= 255
    damaged.write_bytes(content)
    again = dataset()
    with pytest.warns(UserWarning, match=f"{damaged}: damaged: its content is not what .* says; made again"):
        write(tmp_path / "store", again)
    assert again.train.asked == list(range(8, 38))
    assert same_files(tmp_path / "store" / "1.0.0", whole)


def test_an_unfinished_store_is_not_read(tmp_path):
    version = begun(tmp_path)
    finish = f"finish it with protojax features EXPERIMENT.toml --output {tmp_path}/store$"
    with pytest.raises(DataError, match=f"store: the store is unfinished, and stands in .*store.partial; {finish}"):
        feature_store.read(tmp_path / "store", dataset(), STAMP)
    with pytest.raises(DataError, match=f"store.partial: the store is unfinished: 2 of 6 shards; {finish}"):
        feature_store.read(version.parent, dataset(), STAMP)


def test_an_unfinished_store_of_other_features_is_not_deleted_unasked(tmp_path):
    begun(tmp_path)
    other = STAMP.model_copy(update={"crop": 0.5, "views": 0})
    with pytest.raises(
        DataError,
        match="store.partial: an unfinished store of other features .*: crop is 1.0, not 0.5; views is 1, not 0",
    ):
        write(tmp_path / "store", dataset(), other)
    again = dataset()
    assert write(tmp_path / "store", again, other, overwrite=True) == {"train": 19, "test": 5}
    assert again.train.asked == list(range(19))


def test_what_is_no_unfinished_store_is_left_alone(tmp_path):
    (tmp_path / "store.partial").mkdir()
    write(tmp_path / "store", dataset())
    (tmp_path / "other.partial" / "1.0.0").mkdir(parents=True)
    (tmp_path / "other.partial" / "1.0.0" / "thesis").write_text("years of work")
    with pytest.raises(DataError, match="other.partial holds something else than an unfinished feature store"):
        write(tmp_path / "other", dataset(), overwrite=True)
    assert (tmp_path / "other.partial" / "1.0.0" / "thesis").read_text() == "years of work"


def test_a_store_is_replaced_when_the_new_one_is_whole(tmp_path, whole):
    write(tmp_path / "store", dataset(), STAMP.model_copy(update={"views": 0}))
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "store", dataset(21), overwrite=True)
    assert len(tfds.builder_from_directory(tmp_path / "store" / "1.0.0").as_data_source("train")) == 19
    write(tmp_path / "store", dataset(), overwrite=True)
    assert same_files(tmp_path / "store" / "1.0.0", whole)
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_full_disk_loses_no_whole_shard(tmp_path, whole):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    version = begun(tmp_path)
    # Of a shard: ArrayRecord files have whole blocks of 64 KiB.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(
            DataError, match="store could not be finished: .*; the same command goes on with what stands in .*partial"
        ):
            write(tmp_path / "store", dataset())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(list(version.glob("store-train.array_record-*-of-00005"))) == 2
    write(tmp_path / "store", dataset())
    assert same_files(tmp_path / "store" / "1.0.0", whole)


def test_a_damaged_shard_of_a_finished_store_is_named(tmp_path):
    write(tmp_path / "store", dataset())
    path = tmp_path / "store" / "1.0.0" / "store-train.array_record-00001-of-00005"
    content = path.read_bytes()
    remedy = f"write the store again with protojax features EXPERIMENT.toml --output {tmp_path}/store --overwrite"
    flipped = bytearray(content)
    # Within the first record, which follows a block header of 64 bytes.
    flipped[120] ^= 255
    path.write_bytes(flipped)
    train = feature_store.read(tmp_path / "store", dataset(), STAMP)[0][0]
    with pytest.raises(DataError, match=f"{path}: damaged: its record 0 cannot be read; {remedy}"):
        train[8]
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{path}: damaged: 131071 bytes, not 131072; {remedy}"):
        feature_store.read(tmp_path / "store", dataset(), STAMP)
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: missing; {remedy}"):
        feature_store.read(tmp_path / "store", dataset(), STAMP)


def test_a_store_of_before_shards_were_listed_is_read(tmp_path):
    write(tmp_path / "store", dataset())
    (tmp_path / "store" / "1.0.0" / "shards.json").unlink()
    assert len(feature_store.read(tmp_path / "store", dataset(), STAMP)[0][0]) == 19


def test_a_list_of_shards_that_is_damaged_is_named(tmp_path):
    write(tmp_path / "store", dataset())
    (tmp_path / "store" / "1.0.0" / "shards.json").write_text("{")
    with pytest.raises(DataError, match="shards.json: damaged: .*; write the store again"):
        feature_store.read(tmp_path / "store", dataset(), STAMP)
