"""Texts as sequences of character codes (Zhang and LeCun 2015; Conneau et al. 2016; ProtoAttend, appendix A.2)."""

from collections.abc import Iterable, Sequence

import numpy as np

# The list of Zhang and LeCun without its repeated hyphen, and with the space of Conneau et al. for its line feed.
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+=<>()[]{} "
"""The 69 characters, with the codes 1 to 69."""
PADDING = 0
UNKNOWN = len(ALPHABET) + 1
"""The code of every other character."""

# By code point; its last entry stands for all code points beyond it.
_CODES = np.full(129, UNKNOWN, np.uint8)
_CODES[[ord(character) for character in ALPHABET]] = np.arange(1, UNKNOWN)


def encode(text: str, length: int) -> np.ndarray:
    """The codes of the first `length` characters, in lower case.

    Returns:
      uint8 `[length]`: 1 to 69, 70 for characters outside the alphabet, 0 after the end of the text.
    """
    points = np.frombuffer(text.lower()[:length].encode("utf-32-le", "surrogatepass"), np.uint32)
    codes = np.full(length, PADDING, np.uint8)
    codes[: len(points)] = _CODES[np.minimum(points, len(_CODES) - 1)]
    return codes


def count(texts: Iterable[str], length: int) -> dict[str, int]:
    """What encoding loses and adds: `truncated` and `padded` texts, and `unknown` characters among those kept."""
    counts = {"truncated": 0, "padded": 0, "unknown": 0}
    for text in texts:
        lower = text.lower()
        counts["truncated"] += len(lower) > length
        counts["padded"] += len(lower) < length
        counts["unknown"] += int(np.count_nonzero(encode(text, length) == UNKNOWN))
    return counts


class Encoded(Sequence[np.ndarray]):
    """Texts, encoded when they are asked for."""

    def __init__(self, texts: Sequence[str], length: int):
        self._texts = texts
        self._length = length

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, place: int) -> np.ndarray:
        return encode(self._texts[place], self._length)
