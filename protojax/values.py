"""What the values of command line options mean; what is wrong with one is a ValueError that names the option."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path


def names(parsed: argparse.Namespace, option: str) -> list[str] | None:
    """Names separated by commas; None where the option was not given."""
    if (text := getattr(parsed, option)) is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"--{option.replace('_', '-')} {text!r}: a name is empty; separate names by single commas")
    return names


def numbers(parsed: argparse.Namespace, option: str) -> list[int] | None:
    """Different whole numbers from 0, separated by commas; None where the option was not given."""
    if (text := getattr(parsed, option)) is None:
        return None
    numbers = [number.strip() for number in text.split(",")]
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise ValueError(f"--{option} {text!r}: give whole numbers from 0, separated by commas, such as 3,7")
    # Python refuses to read numbers of thousands of digits.
    if large := [number for number in numbers if len(number.lstrip("0")) > 19 or int(number) >= 2**63]:
        raise ValueError(f"--{option} {text!r}: {large[0]} is too large")
    seen: set[int] = set()
    for number in map(int, numbers):
        if number in seen:
            raise ValueError(f"--{option} {text!r}: {number} stands there twice")
        seen.add(number)
    return [int(number) for number in numbers]


def check_workdir(workdir: Path, option: str = "--workdir") -> None:
    """Refuses a folder that is none, or cannot be made or written."""
    # What exists of the path decides whether the rest can be made.
    there = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{option} {workdir}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{option} {workdir}: no permission to write in {there}; give another folder")


def size(text: str | None) -> tuple[int, int] | None:
    """Height and width, such as `128x96`; None where the option was not given."""
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise ValueError(f"--image-size {text!r}: give HEIGHTxWIDTH, such as 128x128")
    return int(height), int(width)


def relabelled(text: str | None, label_names: Sequence[str]) -> dict[int, int]:
    """`5=3,7=cat` as new labels by id."""
    labels: dict[int, int] = {}
    for part in [] if text is None else text.split(","):
        id, equals, name = part.strip().partition("=")
        if not (id.isascii() and id.isdigit() and equals and name):
            raise ValueError(f"--relabel {text!r}: give ID=LABEL, separated by commas, such as 5={label_names[0]}")
        if int(id) in labels:
            raise ValueError(f"--relabel {text!r}: {id} stands there twice")
        labels[int(id)] = label(name, label_names, "--relabel")
    return labels


def label(text: str, label_names: Sequence[str], option: str) -> int:
    """A class by its name or, where none has this name, by its number."""
    if text in label_names:
        return label_names.index(text)
    if text.isascii() and text.isdigit() and int(text) < len(label_names):
        return int(text)
    # Another number is no likelier to be meant for having a digit in common.
    is_number = text.removeprefix("-").isdigit()
    near = [] if is_number else difflib.get_close_matches(text, label_names, n=1)
    meant = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"{option}: no class {text!r}{meant} Give a name, or a number from 0 to {len(label_names) - 1}")
