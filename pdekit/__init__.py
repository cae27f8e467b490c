"""Convection-diffusion on the periodic box: solutions, Feynman-Kac paths, and each as a check of the other."""

from pdekit.characteristics import characteristics
from pdekit.data import from_xarray
from pdekit.equation.adjoint import solve_and_pull
from pdekit.equation.density import density
from pdekit.equation.plan import UnstableError, choose_method
from pdekit.equation.resolution import ResolutionWarning
from pdekit.equation.solver import solve
from pdekit.field import compiled
from pdekit.paths.control import Control
from pdekit.paths.estimate import BiasWarning, Estimate
from pdekit.paths.gradient import feynman_kac_gradient
from pdekit.paths.multilevel import MultilevelEstimate, multilevel
from pdekit.paths.sampler import Tolerance, feynman_kac
from pdekit.paths.samples import Sampling
from pdekit.paths.trajectories import sample_paths
from pdekit.problem import ConvectionDiffusion
from pdekit.series import GridSeries
from pdekit.velocity import CompiledVelocity, FunctionVelocity, GridVelocity, RedrawnVelocity
from pdekit.verify import Verification, verify

__all__ = [
    "BiasWarning",
    "CompiledVelocity",
    "Control",
    "ConvectionDiffusion",
    "Estimate",
    "FunctionVelocity",
    "GridSeries",
    "GridVelocity",
    "MultilevelEstimate",
    "RedrawnVelocity",
    "ResolutionWarning",
    "Sampling",
    "Tolerance",
    "UnstableError",
    "Verification",
    "characteristics",
    "choose_method",
    "compiled",
    "density",
    "feynman_kac",
    "feynman_kac_gradient",
    "from_xarray",
    "multilevel",
    "sample_paths",
    "solve",
    "solve_and_pull",
    "verify",
]
