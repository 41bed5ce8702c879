"""CSV and TSV files, read strictly."""

import csv
import difflib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protojax.data.source import DataError

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_ID = "id"
_INT32_MAX = 2**31 - 1


class Sheet(NamedTuple):
    """The rows of a delimited file below its header."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    """The line on which every row ends, counted from 1."""

    def column(self, name: str) -> list[str]:
        """The values of a column.

        Raises:
          DataError: there is no such column.
        """
        if name not in self.header:
            near = difflib.get_close_matches(name, self.header, n=1, cutoff=0.0)[0]
            raise DataError(
                f"{self.path}: no column {name!r}; did you mean {near!r}? The columns are {', '.join(self.header)}"
            )
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def labels(self, name: str) -> tuple[list[str], np.ndarray]:
        """Names of the classes, sorted, and the class of every row, int64; space around a name does not count.

        Raises:
          DataError: there is no such column, or a value of it is empty or spans lines.
        """
        values = [value.strip() for value in self.column(name)]
        for value, line in zip(values, self.lines, strict=True):
            if not value:
                raise DataError(f"{self.path}, line {line}: the label column {name!r} is empty")
            if len(value.splitlines()) > 1:
                raise DataError(f"{self.path}, line {line}: the label {value!r} spans lines")
        names, labels = np.unique(np.array(values, dtype=object), return_inverse=True)
        return names.tolist(), labels.astype(np.int64)

    def ids(self) -> tuple[np.ndarray, str]:
        """int64 ids `[rows]`, and what they are.

        They are the column `id` where that holds different integers of 0 ... 2**31 - 1, else row numbers from 0.
        """
        if _ID in self.header:
            values = self.column(_ID)
            if all(value.isascii() and value.isdigit() for value in values):
                ids = [int(value) for value in values]
                if len(set(ids)) == len(ids) and max(ids, default=0) <= _INT32_MAX:
                    return np.array(ids, np.int64), f"column {_ID}"
        return np.arange(len(self.rows)), "row numbers from 0"


def read(source: str | Path) -> Sheet:
    """Reads a .csv (commas, double quotes around fields) or .tsv (tabs, no quotes) file, `.gz` or not, in UTF-8.

    Raises:
      DataError: there is no such file, it is damaged, not UTF-8, or has rows of another length than its header.
    """
    path = Path(source)
    kind = Path(path.stem if path.suffix == ".gz" else path.name).suffix
    if kind not in _DELIMITERS:
        raise DataError(f"{path}: the name must end with .csv, .tsv, .csv.gz or .tsv.gz")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    # Texts often start with a quotation mark, and files with tabs do not escape it.
    quoting = csv.QUOTE_NONE if kind == ".tsv" else csv.QUOTE_MINIMAL
    reader = csv.reader(_lines(path), delimiter=_DELIMITERS[kind], quoting=quoting, strict=True)
    rows, lines = [], []
    try:
        header = next(reader, [])
        _check_header(path, header)
        for row in reader:
            if not row:  # an empty line
                continue
            if len(row) != len(header):
                raise DataError(f"{path}, line {reader.line_num}: {len(row)} fields where the header has {len(header)}")
            rows.append(row)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    if not rows:
        raise DataError(f"{path}: holds no rows below its header")
    return Sheet(path, header, rows, lines)


def _check_header(path: Path, header: Sequence[str]) -> None:
    for place, name in enumerate(header, start=1):
        if not name:
            raise DataError(f"{path}, line 1: column {place} has no name")
        if name in header[place:]:
            raise DataError(f"{path}, line 1: two columns are named {name!r}")
    if len(header) < 2:
        raise DataError(f"{path}, line 1: expected a header naming an input and a label column, found {list(header)}")


def _lines(path: Path) -> Iterator[str]:
    count = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                count += len(line)
                try:
                    # Spreadsheets put a byte order mark in front.
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{path}, line {number}: byte {error.start + 1} of the line, 0x{line[error.start]:02x}, is not "
                        "UTF-8; save the file as UTF-8"
                    ) from None
    except EOFError:
        raise DataError(f"{path}: truncated gzip file: it ends after {count} unpacked bytes; get it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file: {error}; get it again") from None
