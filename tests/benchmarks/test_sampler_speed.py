"""Path-steps a CPU-second against other libraries, and what variance reduction and levels are worth; printed.

CPU time, not wall time, and candidates that take turns: the ratios then mean something on a busy machine. Peers are
skipped where they are not installed.
"""

import statistics
import time
import warnings
from collections.abc import Callable

import numba
import numpy as np
import pytest
from numba import njit

from pdekit.equation.solver import solve
from pdekit.fastmath import cos2pi, exp, sin2pi
from pdekit.field import compiled
from pdekit.numerics.lanes import LANES
from pdekit.paths.brownian import INCREMENTS, fill_increments
from pdekit.paths.control import Control
from pdekit.paths.multilevel import multilevel
from pdekit.paths.sampler import feynman_kac
from pdekit.paths.samples import Sampling
from pdekit.paths.simulation import Simulation
from pdekit.problem import ConvectionDiffusion
from pdekit.velocity import CompiledVelocity

SIGMA, NUM_STEPS = 0.1, 64
POINTS = np.random.default_rng(0).uniform(size=(8, 2))
TAU = 2 * np.pi
single = np.float32


@compiled(2)
def p1(x, y, t):
    return sin2pi(x) * cos2pi(y) + 0.3, -0.5 * cos2pi(x) * sin2pi(y) + 0.2 * sin2pi(y)


@compiled(2)
def p1_single(x, y, t):
    sx, cx, sy, cy = sin2pi(x), cos2pi(x), sin2pi(y), cos2pi(y)
    return sx * cy + single(0.3), single(-0.5) * cx * sy + single(0.2) * sy


@njit(error_model="numpy")
def p1_libm(x, y, t):
    sx, cx, sy, cy = np.sin(TAU * x), np.cos(TAU * x), np.sin(TAU * y), np.cos(TAU * y)
    return sx * cy + 0.3, -0.5 * cx * sy + 0.2 * sy


def terminal(x):
    return np.exp(np.sin(TAU * x[..., 0])) * np.cos(TAU * x[..., 1])


@pytest.fixture(autouse=True)
def one_thread():
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(threads)


def cpu_seconds(candidates: dict[str, Callable[[], object]], rounds: int = 5) -> dict[str, float]:
    """Median CPU seconds; the first turn compiles and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, run in candidates.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ours(velocity: CompiledVelocity, num_paths: int, **options) -> Callable[[], object]:
    problem = ConvectionDiffusion(velocity, terminal, SIGMA)
    sim = Simulation(problem, np.uint64(1), **options)
    streams = np.arange(len(POINTS), dtype=np.uint64)
    return lambda: sim.payoffs(POINTS, streams, 0, num_paths, NUM_STEPS)


def blocked_numpy(num_paths: int, block: int = 2048) -> Callable[[], object]:
    """The straightforward loop, in blocks that stay in the cache."""
    rng, dt = np.random.default_rng(0), 1.0 / NUM_STEPS

    def run() -> float:
        total = 0.0
        for _ in range(-(-num_paths // block)):
            x, y = np.full(block, 0.3), np.full(block, 0.7)
            for _ in range(NUM_STEPS):
                ax, ay = TAU * x, TAU * y
                sx, cx, sy, cy = np.sin(ax), np.cos(ax), np.sin(ay), np.cos(ay)
                dw = SIGMA * np.sqrt(dt) * rng.standard_normal((2, block))
                x += dt * (sx * cy + 0.3) + dw[0]
                y += dt * (-0.5 * cx * sy + 0.2 * sy) + dw[1]
            total += terminal(np.stack([x, y], axis=-1)).sum()
        return total

    return run


def diffrax_paths(num_paths: int) -> Callable[[], object]:
    diffrax = pytest.importorskip("diffrax")
    import jax
    import jax.numpy as jnp
    import lineax

    jax.config.update("jax_enable_x64", True)

    def drift(t, x, args):
        sx, cx, sy, cy = jnp.sin(TAU * x[0]), jnp.cos(TAU * x[0]), jnp.sin(TAU * x[1]), jnp.cos(TAU * x[1])
        return jnp.stack([sx * cy + 0.3, -0.5 * cx * sy + 0.2 * sy])

    def one(key):
        shape = jax.ShapeDtypeStruct((2,), jnp.float64)
        noise = diffrax.UnsafeBrownianPath(shape=shape, key=key)
        spread = lineax.DiagonalLinearOperator(jnp.full(2, SIGMA))
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(lambda t, x, args: spread, noise))
        solution = diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            0.0,
            1.0,
            1.0 / NUM_STEPS,
            jnp.array([0.3, 0.7]),
            saveat=diffrax.SaveAt(t1=True),
            adjoint=diffrax.DirectAdjoint(),
            max_steps=NUM_STEPS + 1,
        )
        x = solution.ys[0]
        return jnp.exp(jnp.sin(TAU * x[0])) * jnp.cos(TAU * x[1])

    run = jax.jit(lambda key: jax.vmap(one)(jax.random.split(key, num_paths)).sum())
    return lambda: run(jax.random.key(0)).block_until_ready()


def torchsde_paths(num_paths: int) -> Callable[[], object]:
    torchsde = pytest.importorskip("torchsde")
    import torch

    class P1(torch.nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t, x):
            s, c = torch.sin(TAU * x), torch.cos(TAU * x)
            first = s[:, 0] * c[:, 1] + 0.3
            return torch.stack([first, -0.5 * c[:, 0] * s[:, 1] + 0.2 * s[:, 1]], dim=1)

        def g(self, t, x):
            return torch.full_like(x, SIGMA)

    start = torch.tensor([[0.3, 0.7]], dtype=torch.float64).repeat(num_paths, 1)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)

    def run() -> object:
        with torch.no_grad():
            x = torchsde.sdeint(P1(), start, times, method="euler", dt=1.0 / NUM_STEPS)[-1]
            return (torch.exp(torch.sin(TAU * x[:, 0])) * torch.cos(TAU * x[:, 1])).sum()

    return run


def test_path_steps_against_peers():
    ours_paths, numpy_paths, peers_paths = 25_600, 2048 * 16, 20_000
    steps = {"float64": ours_paths * len(POINTS), "float32": ours_paths * len(POINTS)}
    candidates = {
        "float64": ours(p1, ours_paths, scheme="euler"),
        "float32": ours(p1_single, ours_paths, scheme="euler", dtype="float32"),
    }
    makers = {
        "NumPy, blocked": (blocked_numpy, numpy_paths),
        "diffrax": (diffrax_paths, peers_paths),
        "torchsde": (torchsde_paths, peers_paths),
    }
    for name, (make, paths) in makers.items():
        try:
            candidates[name], steps[name] = make(paths), paths
        except pytest.skip.Exception:
            print(f"\n{name}: not installed")
    seconds = cpu_seconds(candidates)
    rates = {name: steps[name] * NUM_STEPS / s / 1e6 for name, s in seconds.items()}
    print("\nEuler-Maruyama on P1, million path-steps a CPU-second, payoff included")
    for name, rate in rates.items():
        print(f"  {name:16s} {rate:8.2f}   float64 is {rates['float64'] / rate:7.1f}x")


def test_velocities_and_schemes():
    paths = 12_800
    node_values = ConvectionDiffusion(p1, terminal, SIGMA).velocity.nodes(64, 0.0)
    grid = ConvectionDiffusion(node_values, terminal, SIGMA)
    streams = np.arange(len(POINTS), dtype=np.uint64)

    def table(scheme: str, dtype: str) -> Callable[[], object]:
        sim = Simulation(grid, np.uint64(1), scheme, dtype=dtype)
        return lambda: sim.payoffs(POINTS, streams, 0, paths, NUM_STEPS)

    libm = CompiledVelocity(p1_libm, 2)
    candidates = {
        "Heun, pdekit.fastmath": ours(p1, paths, scheme="heun"),
        "Heun, np.sin": ours(libm, paths, scheme="heun"),
        "Euler, pdekit.fastmath": ours(p1, paths, scheme="euler"),
        "Euler, np.sin": ours(libm, paths, scheme="euler"),
        "Euler, two-point": ours(p1, paths, scheme="euler", increments="two_point"),
        "Heun, node values": table("heun", "float64"),
        "Heun, node values, float32": table("heun", "float32"),
    }
    seconds = cpu_seconds(candidates)
    print("\nP1, million path-steps a CPU-second")
    for name, s in seconds.items():
        print(f"  {name:28s} {paths * len(POINTS) * NUM_STEPS / s / 1e6:8.2f}")
    for scheme in ("Heun", "Euler"):
        ratio = seconds[f"{scheme}, np.sin"] / seconds[f"{scheme}, pdekit.fastmath"]
        print(f"  {scheme}: fastmath is {ratio:.2f}x np.sin")


def test_solution_as_control():
    problem = ConvectionDiffusion(p1, terminal, SIGMA)
    solution = solve(problem, num_points=128, dt=2e-3, times=np.linspace(0.0, 1.0, 65), progress=False)
    streams = np.arange(len(POINTS), dtype=np.uint64)
    controls = {"none": None} | {
        name: Control.from_solution(solution, hessian=name == "hessian") for name in ("gradient", "hessian")
    }
    print("\nP1 with Heun and the solution as control: variance reduction (geometric mean, least) and cost")
    for steps in (64, 128, 256):
        sims = {name: Simulation(problem, np.uint64(1), control=c) for name, c in controls.items()}
        runs = {name: lambda n=steps, sim=sim: sim.payoffs(POINTS, streams, 0, 12_800, n) for name, sim in sims.items()}
        seconds = cpu_seconds(runs, rounds=3)
        variance = {name: run().var(axis=1) for name, run in runs.items()}
        for name in ("gradient", "hessian"):
            ratio = variance["none"] / variance[name]
            mean, cost = np.exp(np.log(ratio).mean()), seconds[name] / seconds["none"]
            print(f"  {steps:4d} steps, {name:8s} {mean:8.0f} {ratio.min():8.0f}   {cost:.2f}x the cost")


def test_quasi_monte_carlo_and_antithetic_paths():
    problem = ConvectionDiffusion(p1, terminal, SIGMA)
    options = {"num_paths": 2**17, "num_steps": NUM_STEPS, "progress": False}
    plain = feynman_kac(problem, POINTS, **options)
    print("\nP1, variance reduction at equal paths (geometric mean, range over points)")
    for name, extra in (("antithetic", {"antithetic": True}), ("Sobol, bridge", {"qmc": True})):
        run = feynman_kac(problem, POINTS, **options, sampling=Sampling(**extra))
        ratio = (plain.standard_error / run.standard_error) ** 2
        mean, cost = np.exp(np.log(ratio).mean()), run.seconds / plain.seconds
        print(f"  {name:14s} {mean:6.1f} ({ratio.min():.1f} to {ratio.max():.1f})   {cost:.2f}x the time")


def test_multilevel_on_p1():
    problem = ConvectionDiffusion(p1, terminal, SIGMA)
    solution = solve(problem, num_points=128, dt=2e-3, times=np.linspace(0.0, 1.0, 129), progress=False)
    exact = feynman_kac(
        problem,
        POINTS[:1],
        num_paths=500_000,
        num_steps=512,
        control=Control.from_solution(solution, hessian=True),
        rng=99,
        progress=False,
    )
    print(f"\nMultilevel on P1, 30 seeds; reference {exact.mean[0]:.6f} ± {exact.standard_error[0]:.1g}")
    for rmse in (8e-3, 4e-3, 2e-3):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # heavy tails at a pilot level
            runs = [multilevel(problem, POINTS[:1], rmse=rmse, rng=seed) for seed in range(30)]
        errors = np.array([run.mean[0] for run in runs]) - exact.mean[0]
        work = statistics.mean(run.cost for run in runs) * rmse**2
        print(f"  rmse {rmse:g}: delivered / requested {np.sqrt(np.mean(errors**2)) / rmse:.2f}, cost rmse² {work:.1f}")


gaussian = INCREMENTS["gaussian"]


@njit(error_model="numpy", fastmath={"contract"})
def asian_sums(seed, level, first, num_samples):
    """QMCPy's default option: arithmetic Asian call on geometric Brownian motion, trapezoidal mean, 2·2**l steps."""
    steps = 2 * 2**level
    dt = 1.0 / steps
    dw, z = np.empty((steps, 1, LANES)), np.empty((steps + 6, LANES))
    words = np.empty((2, LANES), np.uint64)
    w, fine, coarse, y = np.empty(LANES), np.empty(LANES), np.empty(LANES), np.empty(LANES)
    sums = np.zeros(6)
    for path in range(first, first + num_samples, LANES):
        fill_increments(gaussian, seed, np.uint64(level), path, 0, steps, 1, np.sqrt(dt), dw, z, words)
        for i in range(LANES):
            w[i], fine[i], coarse[i] = 0.0, 15.0, 15.0
        for n in range(steps):
            weight_coarse = 0.0 if n % 2 == 0 else (0.5 if n == steps - 1 else 1.0)
            weight = 0.5 if n == steps - 1 else 1.0
            part = dw[n, 0]
            for i in range(LANES):
                w[i] += part[i]
                s = 30.0 * exp(0.5 * w[i] - 0.125 * (n + 1) * dt)
                fine[i] += weight * s
                coarse[i] += weight_coarse * s
        for i in range(LANES):
            fine[i] = max(fine[i] / steps - 35.0, 0.0)
            y[i] = fine[i] - (max(2.0 * coarse[i] / steps - 35.0, 0.0) if level else 0.0)
        for i in range(LANES):
            square = y[i] * y[i]
            sums[0] += y[i]
            sums[1] += square
            sums[2] += square * y[i]
            sums[3] += square * square
            sums[4] += fine[i]
            sums[5] += fine[i] * fine[i]
    return sums


def asian_levels(seed: int) -> Callable[[int, int], np.ndarray]:
    """A user's own level function, compiled with the package's generator."""
    done: dict[int, int] = {}

    def level_function(level: int, num_samples: int) -> np.ndarray:
        first = done.get(level, 0)
        done[level] = first + num_samples
        return asian_sums(np.uint64(seed), level, first, num_samples)

    return level_function


def test_multilevel_against_qmcpy():
    qmcpy = pytest.importorskip("qmcpy")
    exact = multilevel(asian_levels(12345), rmse=2e-4).mean[0]
    results: dict[str, list[tuple[float, float]]] = {"pdekit": [], "QMCPy": []}
    rmse = 1e-2
    for seed in range(40):
        start = time.process_time()
        value = multilevel(asian_levels(seed), rmse=rmse).mean[0]
        results["pdekit"].append((time.process_time() - start, value))
        start = time.process_time()
        option = qmcpy.FinancialOption(qmcpy.IIDStdUniform(seed=seed))
        value, _ = qmcpy.CubMLMC(option, rmse_tol=rmse).integrate()
        results["QMCPy"].append((time.process_time() - start, float(np.ravel(value)[0])))
    print(f"\nAsian call, rmse {rmse:g}, 40 seeds; reference {exact:.4f}")
    scaled = {}
    for name, runs in results.items():
        seconds = statistics.mean(s for s, _ in runs)
        delivered = np.sqrt(np.mean([(v - exact) ** 2 for _, v in runs]))
        scaled[name] = seconds * (delivered / rmse) ** 2
        print(f"  {name:8s} {seconds:.3f} CPU s, delivered / requested {delivered / rmse:.2f}")
    print(f"  at equal accuracy pdekit is {scaled['QMCPy'] / scaled['pdekit']:.1f}x faster")
