"""`python -m benchmarks [NAME ...] [--quick] [--json FILE]`: see README.md beside this file."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import floor, measure, report

NAMES = "sparsemax", "attention", "quantize", "training_step", "database", "feeding", "epoch"
_HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs benchmarks, and reports."""
    options = _parse(arguments)
    if options.report:
        machine, rows = report.combine(options.report)
        report.write_readme(_HERE / "README.md", report.table(machine, rows))
        report.plot(rows, _HERE / "figures")
        return 0
    peaks = floor.measure(options.quick)
    machine = {**measure.header(), **peaks._asdict()}
    options.peaks = peaks
    rows = []
    for name in options.names or NAMES:
        print(f"{name}:", flush=True)
        try:
            for case in importlib.import_module(f"benchmarks.{name}").cases(options):
                print(f"  {case.name}", flush=True)
                rows += measure.measure(case, measure.QUICK if options.quick else measure.FULL)
        except measure.Skipped as reason:
            print(f"  skipped: {reason}")
        if options.json:
            # After every benchmark: the next one may take an hour.
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(report.table(machine, rows))
    if options.json:
        report.plot(rows, options.json.parent / "figures")
    wrong = [row for row in rows if row["exact"] is False and row["implementation"].startswith(measure.OURS)]
    for row in wrong:
        print(f"not exact: {row['implementation']}, {row['case']}", file=sys.stderr)
    return 1 if wrong else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="protojax beside its peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all when absent")
    parser.add_argument("--quick", action="store_true", help="small cases and few repeats: does it all still run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="writes rows there, and plots into figures beside it")
    parser.add_argument("--data-dir", metavar="FOLDER", help="prepared data sets; training_step needs Fashion-MNIST")
    parser.add_argument("--dataset", default="fashion_mnist", metavar="NAME", help="the prepared data set")
    parser.add_argument(
        "--run", type=Path, metavar="FOLDER", help="a trained run: training_step, attention and epoch use it"
    )
    parser.add_argument("--steps", type=int, default=1000, help="steps that training_step trains before it measures")
    parser.add_argument(
        "--report",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="runs nothing: writes the best medians of earlier --json files to benchmarks/README.md, and plots",
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in NAMES:
            parser.error(f"unknown benchmark {name!r}: choose from {', '.join(NAMES)}")
    if options.steps < 1:
        parser.error("--steps must be at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
