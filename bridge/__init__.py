"""The neural ensemble as a Monte Carlo estimate of the PDE solution.

network = FlowNetwork(SmoothVelocity(2, box=Box(4.6, 6.0)), num_blocks=16, sigma=0.3)
problem = network_problem(network)                      # its own equation, for pdekit
result = compare(network, points, solution_at(problem, box.to_unit(points)), generator=generator)
estimate = ensemble_estimate(model, x, num_draws=100, stop_when_decided=True, generator=generator)
low, high = estimate.confidence_interval()              # of any random model, as netkit.inject_noise(resnet18())
"""

from bridge.box import Box
from bridge.comparison import Comparison, compare, scheme_residual, solution_at
from bridge.ensemble import EnsembleEstimate, IntervalWarning, ensemble_estimate
from bridge.flow import FlowNetwork, NetworkVelocity, ProblemNetwork, SmoothVelocity, network_problem
from bridge.levels import DepthLevels, coupled_outputs, depth_levels, multilevel_ensemble
from bridge.scaling import measure_noise, noise_coef_of, sigma_of

__all__ = [
    "Box",
    "Comparison",
    "DepthLevels",
    "EnsembleEstimate",
    "FlowNetwork",
    "IntervalWarning",
    "NetworkVelocity",
    "ProblemNetwork",
    "SmoothVelocity",
    "compare",
    "coupled_outputs",
    "depth_levels",
    "ensemble_estimate",
    "measure_noise",
    "multilevel_ensemble",
    "network_problem",
    "noise_coef_of",
    "scheme_residual",
    "sigma_of",
    "solution_at",
]
