"""Why the benchmarks show what they show, one subject a process: `python -m benchmarks.causes NAME`."""
