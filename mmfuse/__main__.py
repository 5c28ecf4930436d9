"""Runs the command line as `python -m mmfuse`."""

import sys

from mmfuse.cli import main

sys.exit(main())
