"""Runs the command line, as `mmfuse` and as `python -m mmfuse`."""

import sys


def main() -> int:
    """Runs the command line; see `cli.main`, which takes a moment to import."""
    try:
        from mmfuse.cli import main as run
    except KeyboardInterrupt:
        print("mmfuse: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
