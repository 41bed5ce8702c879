"""What lies in the ArrayRecord files of a TFDS data set, read and decoded when it is asked for."""

import contextlib
import functools
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import message
from PIL import Image
from tqdm import tqdm

from protojax.data.source import DataError

_CHUNK = 1024
"""Records read at once when all are wanted: several times faster than one by one."""

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's name of an 8-bit image, by channels."""
_CONVERTIBLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image or is cut off."""


class Records(Sequence[dict[str, Any]]):
    """The examples of one stored split: int, float or bytes by feature; iterating shows a progress bar.

    Reads the stored `tf.train.Example` itself: for rows of 14 columns ten times faster than decoding by TFDS. Pickles
    as a path, and opens its files at first use.
    """

    def __init__(self, folder: Path, split: str, length: int, features: Sequence[str]):
        """
        Args:
          folder: of the prepared data set.
          split: a split that it holds.
          length: examples in the split.
          features: names of the scalar or encoded features to read; those of a nested one as `row/age`.
        """
        self._folder = folder
        self._split = split
        self._length = length
        self.features = tuple(features)
        self._files: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": None}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self._parse(self._read(place), place)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with tqdm(total=len(self), desc=f"read {self._split}", unit="examples", delay=1, disable=None) as progress:
            for start in range(0, len(self), _CHUNK):
                places = range(start, min(start + _CHUNK, len(self)))
                for place, record in zip(places, self._read_many(places), strict=True):
                    yield self._parse(record, place)
                progress.update(len(places))

    def _parse(self, record: bytes, place: int) -> dict[str, Any]:
        try:
            stored = _proto().FromString(record).features.feature
            return {name: getattr(stored[name], stored[name].WhichOneof("kind")).value[0] for name in self.features}
        except (message.DecodeError, TypeError, IndexError):
            raise DataError(
                f"{self._folder}: example {place} of split {self._split!r} is damaged or lacks one of the features "
                f"{', '.join(self.features)}: prepare the data set again"
            ) from None

    # Two ways to read, since array_record starts threads for every list of places, even for a list of one.
    def _read(self, place: int) -> bytes:
        with self._reading() as files:
            return files[place]

    def _read_many(self, places: Sequence[int]) -> Sequence[bytes]:
        with self._reading() as files:
            return files.__getitems__(places)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            if self._files is None:
                self._files = _open(self._folder, self._split)
            yield self._files
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{self._folder}: split {self._split!r} cannot be read, prepare the data set again: {error}"
            ) from None


class Pictures(Sequence[np.ndarray]):
    """The images of a stored split, uint8 `[height, width, channels]`."""

    def __init__(self, records: Records, ids: np.ndarray, shape: tuple[int | None, int | None, int]):
        """
        Args:
          records: with the feature `image`, of PNG or JPEG bytes.
          ids: int32 `[stored]`, for messages.
          shape: height and width, None where they differ, and channels. Other channels are converted.
        """
        self._records = records
        self._ids = ids
        self._shape = shape

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: int) -> np.ndarray:
        mode = MODES[self._shape[-1]]
        try:
            with Image.open(io.BytesIO(self._records[place]["image"])) as image:
                if image.mode not in _CONVERTIBLE:
                    raise ValueError(f"pixels of mode {image.mode} are not 8-bit")
                pixels = np.asarray(image if image.mode == mode else image.convert(mode))
        except DataError:
            raise
        except _DAMAGED as error:
            raise self._damaged(place, error) from None
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if any(want not in (None, got) for want, got in zip(self._shape, pixels.shape, strict=True)):
            raise DataError(
                f"the image with id {self._ids[place]} is {list(pixels.shape)}, the data set says {list(self._shape)}"
            )
        return pixels

    def sizes(self) -> Iterator[tuple[int, int]]:
        """Height and width of every image, from its header alone."""
        for place, record in enumerate(self._records):
            try:
                with Image.open(io.BytesIO(record["image"])) as image:
                    yield image.height, image.width
            except _DAMAGED as error:
                raise self._damaged(place, error) from None

    def _damaged(self, place: int, error: Exception) -> DataError:
        # Pillow's own message ends in the address of the buffer.
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        return DataError(
            f"the image with id {self._ids[place]} cannot be decoded: {reason}; replace it and prepare the data again"
        )


class Arrays(Sequence[np.ndarray]):
    """The features of a stored split, made elsewhere."""

    def __init__(self, records: Records, ids: np.ndarray, shape: tuple[int, ...], dtype: str):
        """
        Args:
          records: with the feature `features`, of bytes.
          ids: int32 `[stored]`, for messages.
          shape: of the features of an example.
          dtype: of a number.
        """
        self._records = records
        self._ids = ids
        self._shape = shape
        self._dtype = np.dtype(dtype)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: int) -> np.ndarray:
        stored = self._records[place]["features"]
        try:
            return np.frombuffer(stored, self._dtype).reshape(self._shape)
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the features with id {self._ids[place]} are not {self._dtype} {list(self._shape)}: {error}; prepare "
                "the data set again"
            ) from None


class Described(Sequence[str]):
    """What a person reads of features that no image is kept of."""

    def __init__(self, arrays: Arrays):
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, place: int) -> str:
        found = self._arrays[place]
        return f"features {list(found.shape)} of length {np.linalg.norm(found.astype(np.float64)):.4g}"


class Texts(Sequence[str]):
    """The texts of a stored split."""

    def __init__(self, records: Records, ids: np.ndarray):
        self._records = records
        self._ids = ids

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, place: int) -> str:
        return self._decode(self._records[place]["text"], place)

    def __iter__(self) -> Iterator[str]:
        return (self._decode(record["text"], place) for place, record in enumerate(self._records))

    def _decode(self, stored: bytes, place: int) -> str:
        return decode_text(stored, f"the text with id {self._ids[place]}")


def decode_text(stored: bytes, what: str) -> str:
    """UTF-8 as a string.

    Raises:
      DataError: naming `what` it should have been.
    """
    try:
        return stored.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{what} is not UTF-8: {error.reason} at byte {error.start}: correct it and prepare the data again"
        ) from None


@functools.cache
def _proto() -> Any:
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example


def _open(folder: Path, split: str) -> Any:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    return builder.as_data_source(split, deserialize_method=raw, file_format="array_record")
