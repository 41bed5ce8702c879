"""This library beside its peers, in one process, as ratios: `python -m benchmarks`, see README.md."""
