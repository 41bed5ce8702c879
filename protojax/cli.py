"""The command line: one command, what it says of its failure, and its exit status."""

import os
import sys
from collections.abc import Sequence

from protojax import run_commands, source_commands
from protojax.arguments import build_parser

INTERRUPTED = 75
"""Exit status after SIGTERM: the state is saved and the same command resumes."""

_COMMANDS = source_commands.COMMANDS | run_commands.COMMANDS

_WITHOUT_SETTINGS = (
    "prepare",
    "convert-weights",
    "recognise",
    "database info",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    overrides = [r for r in rest if "=" in r and not r.startswith("-")]
    if unknown := [r for r in rest if r not in overrides]:
        parser.error(f"unknown argument {' '.join(unknown)}; a setting is given as section.key=value")
    command = " ".join([parsed.command, *([parsed.verb] if "verb" in parsed else [])])
    if overrides and command in _WITHOUT_SETTINGS:
        parser.error(f"{command} takes no settings, got {' '.join(overrides)}")
    parsed.overrides = overrides
    # XLA and gRPC write their own diagnostics to stderr, between the lines of the progress bar.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not sys.stderr.isatty():
        # In a file every redrawing of a bar stays.
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    from protojax import checkpoint, run, sharding, train

    try:
        _COMMANDS[parsed.command](parsed)
    except train.Interrupted as error:
        print(f"protojax: {error}", file=sys.stderr)
        return INTERRUPTED
    except (train.NonFiniteError, checkpoint.CheckpointError, sharding.ProcessError) as error:
        print(f"protojax: error: {error}", file=sys.stderr)
        return 1
    except (ValueError, run.RunError, OSError) as error:
        if os.environ.get("PROTOJAX_TRACEBACK"):
            raise
        print(f"protojax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
