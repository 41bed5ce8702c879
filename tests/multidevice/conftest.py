import re

import pytest

COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")


@pytest.fixture(scope="session")
def crossing():
    """All that crosses devices in a compiled function: the shapes and the kinds, sorted, and all numbers in shapes."""

    def found(compiled):
        moved = sorted(COLLECTIVE.findall(compiled.as_text()))
        sizes = [int(n) for shape, _ in moved for n in re.findall(r"\d+", re.sub(r"\{.*?\}|[a-z]+\d+", "", shape))]
        return moved, sizes

    return found
