"""Invariants on examples that hypothesis makes up: any shape, dtype, grid and noise within what is allowed.

`--hypothesis-profile=long` tries many more, others each time.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

import netkit
from netkit import attacks, en_resnet
from netkit.calibration import calibration_of
from netkit.evaluate import Score, robust_accuracy, worst_case
from netkit.intervals import clopper_pearson, mean_accuracy, paired_difference, wilson
from netkit.noise import add_scaled_noise
from pdekit import ConvectionDiffusion, Sampling, density, feynman_kac, solve

pytestmark = [
    pytest.mark.filterwarnings("ignore::pdekit.ResolutionWarning"),  # of grids this small
    pytest.mark.filterwarnings("ignore::pdekit.BiasWarning"),
    pytest.mark.filterwarnings("ignore:feynman_kac:RuntimeWarning"),
]
Array = NDArray[np.float64]

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=max(2, settings().max_examples // 4))
"""For what takes long: an audit."""


# The equation


@st.composite
def sigmas(draw: st.DrawFn, dim: int) -> Any:
    """A number, a vector or a matrix, as ConvectionDiffusion takes them."""
    numbers = st.floats(0.1, 0.5)
    kind = draw(st.sampled_from(["number", "vector", "matrix"]))
    if kind == "number":
        return draw(numbers)
    diagonal = np.array([draw(numbers) for _ in range(dim)])
    return diagonal if kind == "vector" else np.diag(diagonal) + np.triu(np.full((dim, dim), 0.1), 1)


@st.composite
def equations(draw: st.DrawFn, *, dims: tuple[int, ...] = (1, 2), plain: bool = False) -> tuple[Array, Array, Any]:
    """Node values of a velocity and of a terminal condition, and sigma (a number where it is to be plain)."""
    dim = draw(st.sampled_from(dims))
    grid = (draw(st.sampled_from([8, 10, 16])),) * dim
    rng = np.random.default_rng(draw(seeds))
    dtype = draw(st.sampled_from([np.float64, np.float32]))
    velocity = (draw(st.floats(0.0, 0.5)) * rng.uniform(-1, 1, (dim, *grid))).astype(dtype)
    terminal = rng.uniform(-1, 1, grid).astype(dtype)
    return velocity, terminal, draw(st.floats(0.1, 0.5)) if plain else draw(sigmas(dim))


OPTIONS: dict[str, Any] = {"num_points": 32, "dt": 0.05, "times": [0.0, 0.5, 1.0], "progress": False}
methods = st.sampled_from(["spectral_rk4", "spectral_ab4", "spectral_krylov"])


def solved(velocity: Array, terminal: Any, sigma: Any, method: str, **changes: Any) -> Array:
    values: Array = solve(ConvectionDiffusion(velocity, terminal, sigma), method=method, **OPTIONS | changes).u.values
    return values


@given(equations(), methods, st.floats(-3, 3), seeds)
def test_the_solution_is_linear_in_its_terminal_condition(equation: Any, method: str, factor: float, seed: int) -> None:
    velocity, terminal, sigma = equation
    other = np.random.default_rng(seed).uniform(-1, 1, terminal.shape)
    both = solved(velocity, terminal + factor * other, sigma, method)
    apart = solved(velocity, terminal, sigma, method) + factor * solved(velocity, other, sigma, method)
    # of Krylov methods up to its tolerance, which is relative to each condition
    np.testing.assert_allclose(both, apart, atol=1e-6 if method == "spectral_krylov" else 1e-12)


@given(equations(), st.sampled_from(["auto", "semi_lagrangian", "spectral_rk4", "spectral_krylov"]), st.floats(-10, 10))
def test_constants_stay(equation: Any, method: str, value: float) -> None:
    velocity, terminal, sigma = equation
    assume(method != "semi_lagrangian" or np.ndim(sigma) < 2)
    u = solved(velocity, np.full(terminal.shape, value), sigma, method)
    np.testing.assert_allclose(u, value, rtol=1e-12, atol=1e-12)


@given(equations(plain=True))
def test_the_clamped_method_keeps_the_bounds_of_its_terminal_condition(equation: Any) -> None:
    velocity, terminal, sigma = equation
    u = solved(velocity, terminal, sigma, "semi_lagrangian", num_points=terminal.shape[0])
    assert np.abs(u).max() <= np.abs(terminal).max() * (1 + 1e-6)


@given(equations(), methods, st.data())
def test_what_is_shifted_by_a_node_has_the_shifted_solution(equation: Any, method: str, data: st.DataObject) -> None:
    velocity, terminal, sigma = equation
    dim, n = terminal.ndim, terminal.shape[0]
    shift = tuple(data.draw(st.integers(0, n - 1)) for _ in range(dim))
    axes = tuple(range(1, 1 + dim))
    fixed = solved(velocity, terminal, sigma, method, num_points=2 * n)
    moved_terminal = np.roll(terminal, shift, tuple(range(dim)))
    moved = solved(np.roll(velocity, shift, axes), moved_terminal, sigma, method, num_points=2 * n)
    expected = np.roll(fixed, tuple(2 * each for each in shift), axes)
    np.testing.assert_allclose(moved, expected, atol=1e-6 if method == "spectral_krylov" else 1e-11)


@given(equations(), st.sampled_from(["spectral_rk4", "spectral_krylov"]))
def test_a_density_keeps_its_mass(equation: Any, method: str) -> None:
    velocity, terminal, sigma = equation
    problem = ConvectionDiffusion(velocity, terminal, sigma)
    initial = 1.5 + terminal
    mass = density(problem, initial, method=method, **OPTIONS).rho.values
    axes = tuple(range(1, mass.ndim))
    np.testing.assert_allclose(mass.mean(axes), initial.mean(), rtol=1e-6)


@given(equations(), seeds)
def test_a_density_and_a_solution_are_transposes(equation: Any, seed: int) -> None:
    velocity, terminal, sigma = equation
    problem = ConvectionDiffusion(velocity, terminal, sigma)
    initial = np.random.default_rng(seed).uniform(0, 1, terminal.shape)
    u = solve(problem, method="spectral_rk4", **OPTIONS).u.values
    rho = density(problem, initial, method="spectral_rk4", **OPTIONS).rho.values
    product = (u * rho).mean(tuple(range(1, u.ndim)))
    np.testing.assert_allclose(product, product[0], atol=1e-4)


@given(equations(), methods)
def test_the_same_problem_has_the_same_bits(equation: Any, method: str) -> None:
    np.testing.assert_array_equal(solved(*equation, method), solved(*equation, method))


# Paths


SAMPLED: dict[str, Any] = {"num_paths": 512, "num_steps": 8, "progress": False}
samplings = st.sampled_from([Sampling(), Sampling(antithetic=True), Sampling(qmc=True)])


@given(equations(), samplings, seeds)
def test_estimates_do_not_depend_on_which_points_share_a_call(equation: Any, sampling: Sampling, seed: int) -> None:
    problem = ConvectionDiffusion(*equation)
    points = np.random.default_rng(seed).random((4, problem.dim))
    whole = feynman_kac(problem, points, rng=seed, sampling=sampling, **SAMPLED)
    parts = [
        feynman_kac(problem, points[first : first + 2], rng=seed, sampling=sampling, first_point=first, **SAMPLED)
        for first in (0, 2)
    ]
    np.testing.assert_array_equal(whole.mean, np.concatenate([part.mean for part in parts]))
    np.testing.assert_array_equal(whole.standard_error, np.concatenate([part.standard_error for part in parts]))


@given(equations(), samplings, st.floats(-3, 3), seeds)
def test_estimates_are_linear_bounded_and_keep_constants(
    equation: Any, sampling: Sampling, factor: float, seed: int
) -> None:
    velocity, terminal, sigma = equation
    points = np.random.default_rng(seed).random((3, terminal.ndim))

    def estimated(terminal: Array) -> Any:
        problem = ConvectionDiffusion(velocity, terminal, sigma)
        return feynman_kac(problem, points, rng=seed, sampling=sampling, **SAMPLED)

    plain, scaled = estimated(terminal), estimated(factor * terminal.astype(np.float64) + 2.0)
    np.testing.assert_allclose(scaled.mean, factor * plain.mean + 2.0, atol=1e-10)
    np.testing.assert_allclose(scaled.standard_error, abs(factor) * plain.standard_error, atol=1e-9)
    fine = solve(ConvectionDiffusion(velocity, terminal, sigma), num_points=64, dt=0.5, times=[1.0], progress=False).u
    assert np.abs(plain.mean).max() <= 1.1 * np.abs(fine).max()  # between nodes f exceeds them a little
    constant = estimated(np.full(terminal.shape, factor))
    np.testing.assert_allclose(constant.mean, factor, atol=1e-12)
    np.testing.assert_allclose(constant.standard_error, 0.0, atol=1e-12)


# Networks


@st.composite
def images(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Images in [0, 1] and labels of ten classes."""
    count, channels, side = draw(st.integers(1, 5)), draw(st.sampled_from([1, 3])), draw(st.sampled_from([8, 9]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.rand(count, channels, side, side, generator=generator)
    x = x.round() if draw(st.booleans()) else x  # at the edges of the box
    return x, torch.randint(0, 10, (count,), generator=generator)


def network(x: Tensor, **options: Any) -> Any:
    return en_resnet(8, num_members=2, in_channels=x.shape[1], width=2, seed=0, **options).eval()


@given(images(), st.integers(0, 1000))
def test_noise_by_sample_answers_an_image_alike_in_any_batch(batch: tuple[Tensor, Tensor], seed: int) -> None:
    x, _ = batch
    xi = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    noisy = add_scaled_noise(x, xi, noise_coef=0.3, std="sample")
    for image in range(len(x)):
        alone = add_scaled_noise(x[image : image + 1], xi[image : image + 1], noise_coef=0.3, std="sample")
        torch.testing.assert_close(noisy[image : image + 1], alone)


@given(images())
def test_an_ensemble_is_the_mean_of_its_members_in_any_order(batch: tuple[Tensor, Tensor]) -> None:
    x, _ = batch
    model = network(x, noise="off")
    with torch.no_grad():
        together = model(x)
        apart = torch.stack([member(x) for member in model.members]).mean(0)
        model.members = nn.ModuleList(list(model.members)[::-1])
        torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together, model(x), atol=1e-5, rtol=1e-4)


BALLS = {
    "fgsm": lambda model, x, y, eps, norm, g: attacks.fgsm(model, x, y, eps=eps, generator=g),
    "ifgsm": lambda model, x, y, eps, norm, g: attacks.ifgsm(
        model, x, y, eps=eps, step_size=eps / 2, num_steps=3, generator=g
    ),
    "pgd": lambda model, x, y, eps, norm, g: attacks.pgd(
        model, x, y, eps=eps, step_size=eps / 2, num_steps=3, norm=norm, generator=g
    ),
    "arc": lambda model, x, y, eps, norm, g: attacks.arc(model, x, y, eps=eps, num_steps=3, norm=norm, generator=g),
}


@given(images(), st.sampled_from(sorted(BALLS)), st.sampled_from(["linf", "l2"]), st.floats(1e-3, 2.0), seeds)
def test_attacks_stay_in_their_ball_and_in_the_box_and_repeat_themselves(
    batch: tuple[Tensor, Tensor], name: str, norm: str, eps: float, seed: int
) -> None:
    x, y = batch
    norm = norm if name in ("pgd", "arc") else "linf"
    model, given_x = network(x), x.clone()

    def attacked() -> Tensor:
        with model.using_generator(torch.Generator().manual_seed(seed)):
            return BALLS[name](model, x, y, eps, norm, torch.Generator().manual_seed(seed))

    x_adv = attacked()
    assert torch.equal(x, given_x)
    assert (x_adv.shape, x_adv.dtype) == (x.shape, x.dtype)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    order = float("inf") if norm == "linf" else 2
    distance = torch.linalg.vector_norm((x_adv.double() - x.double()).flatten(1), order, dim=1)
    assert distance.max() <= eps + 1e-6 * (1 + x[0].numel() ** 0.5)
    assert torch.equal(x_adv, attacked())


@few
@given(images(), st.integers(0, 1000))
def test_an_evaluation_is_repeated_by_its_seed(batch: tuple[Tensor, Tensor], seed: int) -> None:
    x, y = batch
    options: dict[str, Any] = {"num_draws": 3, "eot_draws": 2, "seed": seed, "batch_size": 2}
    first, second = (robust_accuracy(network(x), x, y, partial(attacks.fgsm, eps=0.1), **options) for _ in range(2))
    assert torch.equal(first.predictions, second.predictions)


# Numbers


counts = st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
confidences = st.floats(0.5, 0.999)


@given(counts, confidences, confidences)
def test_intervals_hold_their_share_widen_and_mirror(count: tuple[int, int], first: float, second: float) -> None:
    hits, n = count
    low, high = sorted((first, second))
    for interval in (wilson, clopper_pearson):
        narrow, wide = interval(hits, n, confidence=low), interval(hits, n, confidence=high)
        mirrored = interval(n - hits, n, confidence=low)
        assert 0 <= wide.low <= narrow.low <= hits / n + 1e-12
        assert hits / n - 1e-12 <= narrow.high <= wide.high <= 1
        assert mirrored.low == pytest.approx(1 - narrow.high, abs=1e-9)
        assert mirrored.high == pytest.approx(1 - narrow.low, abs=1e-9)


@given(st.integers(1, 5), st.integers(2, 40), seeds)
def test_a_paired_difference_changes_its_sign_with_its_sides(num_seeds: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (
        [torch.randint(0, 2, (n,), generator=generator).double() for _ in range(num_seeds)] for _ in range(2)
    )
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.mean == pytest.approx(-back.mean)
    assert there.interval.low == pytest.approx(-back.interval.high)
    assert there.interval.low <= there.mean <= there.interval.high
    assert float(torch.stack(first).mean()) in mean_accuracy(first)


@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 5), seeds)
def test_the_worst_case_of_fixed_models_is_below_each_attack(n_attacks: int, n: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (n,), generator=generator)
    scores = [Score(torch.randint(0, classes, (1, n), generator=generator), labels) for _ in range(n_attacks)]
    worst = worst_case(scores)
    assert worst.mean <= min(score.mean for score in scores) + 1e-12
    broken = torch.stack([score.correct for score in scores]).min(0).values
    assert torch.equal(worst.correct, broken)


@given(st.integers(1, 4), st.integers(2, 40), st.integers(2, 6), seeds)
def test_calibration_is_of_the_images_in_any_order(draws: int, n: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(draws, n, classes, generator=generator, dtype=torch.float64).softmax(-1)
    labels = torch.randint(0, classes, (n,), generator=generator)
    order = torch.randperm(n, generator=generator)
    found, shuffled = calibration_of(probabilities, labels), calibration_of(probabilities[:, order], labels[order])
    for name in ("ece", "nll", "brier"):
        value = getattr(found.mean, name).value
        assert value == pytest.approx(getattr(shuffled.mean, name).value)
        assert value in getattr(found.mean, name).interval
    assert 0 <= found.mean.ece.value <= 1
    assert 0 <= found.mean.brier.value <= 2
    assert sum(part.share for part in found.bins) == pytest.approx(1)
    certain = torch.nn.functional.one_hot(labels, classes).double().expand(draws, n, classes)
    assert calibration_of(certain, labels).mean.ece.value == pytest.approx(0)
    assert calibration_of(certain, labels).mean.nll.value == pytest.approx(0)


@few
@given(images(), st.integers(0, 1000))
def test_an_audit_is_repeated_by_its_seed_and_trusts_no_more_than_its_least(
    batch: tuple[Tensor, Tensor], seed: int
) -> None:
    x, y = batch
    model = network(x, noise="off")
    first, second = (
        netkit.audit(model, x, y, eps=0.1, budget="quick", seed=seed, on_attack=lambda row: None) for _ in range(2)
    )
    assert torch.equal(first.worst.predictions, second.worst.predictions)
    assert first.verdict == second.verdict
    assert all(first.worst.mean <= row.score.mean for row in first.rows if row.kind != "wide")
