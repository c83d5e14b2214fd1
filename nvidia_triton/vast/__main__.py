"""`python -m nvidia_triton.vast <command>`; the Makefile has a target for each."""

import sys

from nvidia_triton.vast.cli import main

sys.exit(main())
