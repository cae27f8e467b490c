"""Convection-diffusion on the periodic box: solutions, Feynman-Kac paths, and each as a check of the other."""

from pdekit.characteristics import characteristics
from pdekit.estimate import BiasWarning, Estimate
from pdekit.multilevel import MultilevelEstimate, multilevel
from pdekit.problem import ConvectionDiffusion
from pdekit.resolution import ResolutionWarning
from pdekit.sampler import feynman_kac
from pdekit.solver import UnstableError, choose_method, solve
from pdekit.velocity import CompiledVelocity, GridVelocity, RedrawnVelocity, compiled
from pdekit.verify import Verification, verify

__all__ = [
    "BiasWarning",
    "CompiledVelocity",
    "ConvectionDiffusion",
    "Estimate",
    "GridVelocity",
    "MultilevelEstimate",
    "RedrawnVelocity",
    "ResolutionWarning",
    "UnstableError",
    "Verification",
    "characteristics",
    "choose_method",
    "compiled",
    "feynman_kac",
    "multilevel",
    "solve",
    "verify",
]
