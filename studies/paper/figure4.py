"""Figure 4 of the paper."""

RANGES = ((-1.0, 1.0), (-0.6, 0.4), (-0.13, 0.15))
"""Ranges of u in panels (a), (b) and (c), read off their colour bars."""
