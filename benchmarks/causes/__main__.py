"""`python -m benchmarks.causes NAME [--run FOLDER] [--quick] [--json FILE]`: see README.md of the benchmarks.

One subject a process, since what ran before in a process is itself one of the causes.
"""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import measure

NAMES = "blocks", "pages", "layers", "step"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures a subject, and prints its rows."""
    options = _parse(arguments)
    try:
        rows = importlib.import_module(f"benchmarks.causes.{options.name}").rows(options)
    except measure.Skipped as reason:
        print(f"{options.name} cannot run here: {reason}", file=sys.stderr)
        return 1
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": measure.header(), "rows": rows}, indent=1) + "\n")
    return 0


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, a column for every key that any of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.causes", description="Why the benchmarks show what they show."
    )
    parser.add_argument("name", choices=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="a trained run: step needs one, blocks can use it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few repeats: does it still run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes the rows there")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
