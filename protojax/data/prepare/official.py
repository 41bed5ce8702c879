"""Official TFDS data sets, built by their own builders: most of these need TensorFlow, and nothing else here does."""

from pathlib import Path

import tensorflow_datasets as tfds

from protojax.data import catalog
from protojax.data.prepare.write import Prepared
from protojax.data.source import DataError

_CATALOG = "https://www.tensorflow.org/datasets/catalog/overview"


def official(name: str, *, data_dir: str | Path | None = None, overwrite: bool = False) -> Prepared:
    """Downloads and builds an official TFDS data set as ArrayRecord, which is read without TensorFlow.

    Args:
      name: `name`, `name/config` or `name:version`, as TFDS takes it. A set that is there already stays as it is.
      data_dir: folder of prepared data sets; the TFDS default when absent.
      overwrite: builds it anew, from what was downloaded before.

    Raises:
      DataError: TFDS has no such builder, it needs TensorFlow and there is none, or it failed.
    """
    folder = None if data_dir is None else Path(data_dir).expanduser()
    mode = tfds.GenerateMode.REUSE_CACHE_IF_EXISTS if overwrite else tfds.GenerateMode.REUSE_DATASET_IF_EXISTS
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(download_mode=mode))
    except ImportError as error:
        # TFDS tells first what it was doing, with the whole example.
        missing = str(error).splitlines()[-1]
        raise DataError(
            f"the builder of {name!r} needs what is not installed ({missing}): {catalog.INSTALL}, then the same again"
        ) from None
    except tfds.core.DatasetNotFoundError:
        raise DataError(f"TFDS has no data set {name!r}; its names are listed at {_CATALOG}") from None
    except Exception as error:
        # A builder runs code of its own, which fails in its own ways: a file to be got by hand, a full disk.
        raise DataError(f"the builder of {name!r} failed: {type(error).__name__}: {error}") from error
    return Prepared(
        Path(builder.data_path), {split: info.num_examples for split, info in builder.info.splits.items()}, {}
    )
