"""Sources of examples, how they are divided and encoded, and how they reach the step.

`load` opens a data set as three splits that share no example, whatever it is made of: the embedded digits, or any
prepared TFDS data set. `images`, `sampling`, `resident`, `streamed` and `noise` bring its examples to the devices;
`prepare` writes prepared data sets from raw files.
"""

from protojax.data.loading import load, load_test
from protojax.data.source import DataError, DataSet, Info, Source

__all__ = ["DataError", "DataSet", "Info", "Source", "load", "load_test"]
"""`Source` is what a split is: a user's own needs no more than its members."""
