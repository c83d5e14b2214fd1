"""Measurements: `make bench`. Every figure is a ratio of two runs, interleaved on the same machine."""
