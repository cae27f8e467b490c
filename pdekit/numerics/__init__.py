"""Fourier calculus, splines and blocks of lanes: mathematics that knows no problem."""
