"""The neural ensemble as a Monte Carlo estimate of the PDE solution."""
