"""Texts with a label."""

from pathlib import Path

import tensorflow_datasets as tfds

from protojax.data import splits
from protojax.data.prepare import delimited
from protojax.data.prepare.write import Duplicates, Prepared, Raw, target, write
from protojax.data.source import DataError


def text(
    source: str | Path,
    *,
    name: str,
    label: str = "label",
    text: str = "text",
    data_dir: str | Path | None = None,
    validation: float = 0.1,
    test: float = 0.2,
    duplicates: Duplicates = "refuse",
    overwrite: bool = False,
) -> Prepared:
    """Prepares two columns of a TSV or CSV file, gzipped or not, with a header.

    Args:
      source: the file.
      name: of the data set.
      label: the label column.
      text: the text column.
      data_dir: folder of prepared data sets; the TFDS default when absent.
      validation: share of the training examples, by hash of the id.
      test: share of all examples, by hash of the id.
      duplicates: a text that stands in two splits, whatever its label, is refused, or dropped from train, then from
        validation.
      overwrite: replaces a prepared data set of this name.

    Raises:
      DataError: a column is missing, a text or a label is empty; see also `delimited.read` and `write`.
    """
    goal = target(name, data_dir, validation=validation, test=test, duplicates=duplicates, overwrite=overwrite)
    sheet = delimited.read(source)
    if label == text:
        raise DataError(f"{sheet.path}: {text!r} cannot be both the label and the text column")
    label_names, labels = sheet.labels(label)
    texts = sheet.column(text)
    for value, line in zip(texts, sheet.lines, strict=True):
        if not value.strip():
            raise DataError(f"{sheet.path}, line {line}: the text column {text!r} is empty")
    ids, id_origin = sheet.ids()
    raw = Raw(
        origin=f"the texts of {sheet.path} (text {text}, label {label}, ids: {id_origin})",
        feature={"text": tfds.features.Text()},
        label_names=label_names,
        ids=ids,
        labels=labels,
        hashes=[splits.content_hash([value.encode()]) for value in texts],
        splits=None,
        read=lambda place: {"text": texts[place]},
    )
    return write(goal, raw)
