"""`python -m nvidia_triton.vast <command>`; the Makefile has a target for each."""

import sys

try:
    from nvidia_triton.vast.cli import main
except KeyboardInterrupt:
    # Nothing runs yet but imports, which take a second or two.
    print("Interrupted before anything was done.", file=sys.stderr)
    sys.exit(130)

sys.exit(main())
