"""Official TFDS data sets, built by their own builders: most of these need TensorFlow, and nothing else here does."""

import importlib.util
import re
from pathlib import Path

import tensorflow_datasets as tfds

from protojax.data import catalog
from protojax.data.prepare.write import Prepared
from protojax.data.source import DataError

_CATALOG = "https://www.tensorflow.org/datasets/catalog/overview"


def official(name: str, *, data_dir: str | Path | None = None) -> Prepared:
    """Downloads and builds an official TFDS data set as ArrayRecord, which is read without TensorFlow.

    A set that is there already stays as it is: to have it built anew, remove its folder.

    Args:
      name: `name`, `name/config` or `name:version`, as TFDS takes it.
      data_dir: folder of prepared data sets; the TFDS default when absent.

    Raises:
      DataError: TFDS has no such builder, it needs TensorFlow and there is none, it is there in another format, or its
        builder failed.
    """
    if re.split("[/:]", name)[0] not in tfds.list_builders(with_community_datasets=False):
        raise DataError(f"TFDS has no data set {name!r}; its names are listed at {_CATALOG}")
    folder = None if data_dir is None else Path(data_dir).expanduser()
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        pictures = any(isinstance(feature, tfds.features.Image) for feature in builder.info.features.values())
        if pictures and importlib.util.find_spec("tensorflow") is None:
            # Here and not after the download.
            raise ModuleNotFoundError("No module named 'tensorflow'")
        builder.download_and_prepare()
    except ImportError as error:
        # TFDS tells first what it was doing, with the whole example.
        missing = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        advice = catalog.INSTALL if "tensorflow" in missing[0] else "install it"
        raise DataError(
            f"the builder of {name!r} needs what is not installed ({missing[0]}): {advice}, then the same again"
        ) from None
    except Exception as error:
        # A builder runs code of its own, which fails in its own ways: a file to be got by hand, a full disk.
        raise DataError(f"the builder of {name!r} failed: {type(error).__name__}: {error}") from error
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    return Prepared(Path(builder.data_path), counts, {})
