"""The handwritten digits that ship inside scikit-learn: 1797 images of 8x8 pixels, nothing to download."""

import hashlib

import numpy as np

from protojax.data.source import Stored

NAME = "digits"
_DARKEST = 16


def read() -> Stored:
    """The digits as one stored split, `train`; the id of an example is its position in scikit-learn."""
    from sklearn.datasets import load_digits  # a second that other data sets need not wait

    digits = load_digits()
    images = np.round(digits.images * (255 / _DARKEST)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int32)
    return Stored(
        name=NAME,
        version="1.0.0",
        kind="image",
        label_names=tuple(str(name) for name in digits.target_names),
        shape=images.shape[1:],
        ids={"train": np.arange(len(labels), dtype=np.int32)},
        labels={"train": labels},
        inputs={"train": images},
        digest=hashlib.blake2b(images.tobytes() + labels.tobytes(), digest_size=16).hexdigest(),
    )
