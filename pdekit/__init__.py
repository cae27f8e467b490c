"""Convection-diffusion on the periodic box: solutions, Feynman-Kac paths, and each as a check of the other."""

from pdekit.problem import ConvectionDiffusion
from pdekit.solver import UnstableError, choose_method, solve
from pdekit.velocity import CompiledVelocity, GridVelocity, RedrawnVelocity, compiled

__all__ = [
    "CompiledVelocity",
    "ConvectionDiffusion",
    "GridVelocity",
    "RedrawnVelocity",
    "UnstableError",
    "choose_method",
    "compiled",
    "solve",
]
