"""Fields on a grid at given times: between them, in other coordinates, how few frames they hold, and solved with."""

from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest
import xarray as xr

from pdekit import ConvectionDiffusion, GridSeries, solve
from pdekit.equation.storage import fingerprint
from pdekit.field import GridField, node_points
from pdekit.velocity import GridVelocity

TAU = 2.0 * np.pi
GRIDS = [(12,), (8, 6), (4, 6, 8)]


def random_frames(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1.0, 1.0, (count, *shape))


class Counted:
    """Frames that are made when asked for, and count how often each was."""

    def __init__(self, count: int, *shape: int) -> None:
        self.shape, self.reads = shape, [0] * count

    def __len__(self) -> int:
        return len(self.reads)

    def __getitem__(self, i: int) -> np.ndarray:
        self.reads[i] += 1
        return np.full(self.shape, 0.1 * np.sin(i))


@pytest.mark.parametrize("grid", GRIDS)
def test_between_times_nodes_are_those_of_a_linear_interpolation(grid):
    times, frames = np.array([0.0, 0.5, 2.0, 2.25]), random_frames(4, len(grid), *grid)
    series = GridSeries(times, frames, shape=(len(grid),))
    array = xr.DataArray(frames, dims=("time", "c", *"xyz"[: len(grid)]), coords={"time": times})
    for t in (0.0, 0.3, 0.5, 1.7, 2.25):
        expected = array.interp(time=t).values
        np.testing.assert_allclose(series.nodes(grid, t), expected, atol=1e-14)
        np.testing.assert_allclose(series.at_time(t).values, expected, atol=1e-14)
        np.testing.assert_allclose(series(node_points(grid, len(grid)), t), np.moveaxis(expected, 0, -1), atol=1e-12)


@pytest.mark.parametrize("continuation", ["trigonometric", "bicubic", "bilinear"])
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_other_grids_and_points_see_the_same_field(interpolation, continuation):
    series = GridSeries(np.arange(5.0), random_frames(5, 2, 8, 6), interpolation, continuation, (2,))
    x = np.random.default_rng(1).uniform(-1, 2, (20, 2))
    for t in (0.2, 2.5, 4.0):
        at_time = series.at_time(t)
        np.testing.assert_allclose(series(x, t), at_time(x), atol=1e-12)
        np.testing.assert_allclose(series.nodes((16, 10), t), at_time.nodes((16, 10)), atol=1e-12)


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 2), ("cubic", 3)])
@pytest.mark.parametrize("even", [True, False])
def test_interpolation_in_time_has_its_order(interpolation, order, even):
    counts = np.array([33, 65, 129, 257])
    t = np.linspace(0.0, 1.0, 1001)
    errors = []
    for count in counts:
        s = np.linspace(0.0, 1.0, count)
        times = s if even else s + 0.1 * np.sin(TAU * s) / TAU
        frames = np.sin(5.0 * times)[:, None, None] * np.ones((1, 2))
        series = GridSeries(times, frames, interpolation)
        errors.append(max(abs(float(series.nodes(2, s)[0, 0]) - np.sin(5.0 * s)) for s in t))
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_cubic_interpolation_is_exact_for_parabolas_and_goes_through_its_frames(count):
    times = np.sort(np.random.default_rng(2).uniform(0.0, 1.0, count))
    parabola = np.poly1d([3.0, -1.0, 0.5] if count > 2 else [-1.0, 0.5])
    series = GridSeries(times, parabola(times)[:, None, None] * np.ones((1, 2)), "cubic")
    for t in (*times, *np.linspace(times[0], times[-1], 17)):
        assert float(series.nodes(2, t)[0, 0]) == pytest.approx(parabola(t), abs=1e-12)


@pytest.mark.parametrize(
    ("times", "frames", "message"),
    [
        ([0.0, 1.0, 1.0], np.zeros((3, 1, 4)), "times: expected at least two, increasing, got"),
        ([0.0], np.zeros((1, 1, 4)), "times: expected at least two, increasing, got"),
        ([0.0, np.nan], np.zeros((2, 1, 4)), "times: expected finite values, got nan at index"),
        ([0.0, 1.0], np.zeros((3, 1, 4)), "times: expected one for each of 3 frames, got 2"),
        ([0.0, 1.0], np.full((2, 1, 4), np.nan), "field, frame 0: expected finite values, got nan"),
        ([0.0, 1.0], np.zeros((2, 2, 4)), r"field: expected node values of shape \(N, ..., N\)"),
    ],
)
def test_what_is_no_series_is_met_with_one_line(times, frames, message):
    with pytest.raises(ValueError, match=message) as caught:
        GridSeries(times, frames)
    assert "\n" not in str(caught.value)


def test_each_frame_is_checked_when_it_is_read():
    frames = [np.zeros((1, 4)), np.zeros((1, 5)), np.array([[0.0, np.inf, 0.0, 0.0]])]
    series = GridSeries([0.0, 1.0, 2.0], frames)
    with pytest.raises(ValueError, match=r"field, frame 1: expected shape \(1, 4\), as frame 0 has, got \(1, 5\)"):
        series.nodes(4, 0.5)
    with pytest.raises(ValueError, match="field, frame 2: expected finite values, got inf at index"):
        series.nodes(4, 2.0)


def test_a_pass_through_time_reads_each_frame_once_and_holds_a_few():
    frames = Counted(100, 2, 64, 64)
    series = GridSeries(np.arange(100.0), frames, "cubic", shape=(2,))
    size = np.zeros((2, 64, 64)).nbytes
    tracemalloc.start()
    for t in np.linspace(99.0, 0.0, 397):
        series.nodes(64, t)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames.reads == [2] + [1] * 99  # the first one tells the shape
    assert peak < 20 * size


def test_a_solve_reads_a_frame_twice_and_those_of_the_largest_winds_four_times():
    """Once to see how large F is and once on the way; for modes and strain at some instants."""
    frames = Counted(60, 2, 8, 8)
    problem = ConvectionDiffusion(
        GridSeries(np.arange(60.0), frames, shape=(2,)), lambda x: np.cos(TAU * x[..., 0]), 0.05, horizon=59.0
    )
    solve(problem, num_points=16, dt=0.25)
    assert np.median(frames.reads) == 2
    assert max(frames.reads) <= 4


def test_identity_reads_each_frame_once_whatever_the_coordinates():
    frames = Counted(20, 1, 8)
    series = GridSeries(np.arange(20.0), frames, shape=(1,), box=((0.0, 5.0),))
    problem = ConvectionDiffusion(series, np.zeros(8), 0.1, horizon=19.0)
    before = np.array(frames.reads)
    first = fingerprint(problem.on_unit_box)
    assert fingerprint(problem.on_unit_box) == first
    assert fingerprint(ConvectionDiffusion(series, np.zeros(8), 0.1, horizon=19.0).on_unit_box) == first
    assert (np.array(frames.reads) - before).max() <= 1


def test_identity_tells_series_apart():
    times, frames = np.arange(4.0), random_frames(4, 1, 8)
    changed, later = frames.copy(), times.copy()
    changed[2, 0, 3] += 1e-15
    later[3] += 1e-9
    others = [
        GridSeries(times, frames),
        GridSeries(times, changed),
        GridSeries(later, frames),
        GridSeries(times, frames, "cubic"),
        GridSeries(times, frames, "linear", "bicubic"),
        GridSeries(times, frames).scaled(2.0),
    ]
    assert len({series.identity(np.zeros((1, 1)), np.zeros(1)) for series in others}) == len(others)
    again = GridSeries(times.copy(), list(frames))
    assert again.identity(np.zeros((1, 1)), np.zeros(1)) == others[0].identity(np.zeros((1, 1)), np.zeros(1))


def test_a_pickled_series_takes_its_frames_along_and_no_tables():
    series = GridSeries(np.arange(3.0), random_frames(3, 2, 16, 16), "cubic", shape=(2,), box=((0, 2), (0, 3)))
    series = series.scaled(2.0, 3.0)
    x = np.random.default_rng(0).random((5, 2))
    expected = series(x, 1.3)
    content = pickle.dumps(series)
    assert len(content) < 1.1 * 3 * 2 * 16 * 16 * 8 + 4096
    np.testing.assert_array_equal(pickle.loads(content)(x, 1.3), expected)


def test_times_outside_are_refused_before_anything_is_solved():
    series = GridSeries([1.0, 3.0], random_frames(2, 2, 8, 8), shape=(2,))
    message = r"velocity: expected times that cover \[0, 2\], got \[1, 3\]"
    with pytest.raises(ValueError, match=message):
        ConvectionDiffusion(series, np.zeros((8, 8)), 0.1, horizon=2.0)
    potential = GridSeries([0.0, 3.0], random_frames(2, 1, 8, 8))
    velocity = np.zeros((2, 8, 8))
    with pytest.raises(ValueError, match=r"potential: expected times that cover \[0, 3.5\], got \[0, 3\]"):
        ConvectionDiffusion.from_initial_value(velocity, np.zeros((8, 8)), 0.1, horizon=3.5, potential=potential)
    with pytest.raises(ValueError, match=r"field: expected a time within \[1, 3\], got 0.5"):
        series.nodes(8, 0.5)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_from_an_initial_value_it_runs_backward(interpolation):
    times = np.array([0.0, 0.5, 2.0, 2.25])
    series = GridSeries(times, random_frames(4, 2, 8, 6), interpolation, shape=(2,))
    backward = ConvectionDiffusion.from_initial_value(series, np.zeros((8, 6)), 0.1, horizon=2.0).velocity
    for t in (0.0, 0.3, 1.5, 2.0):
        np.testing.assert_allclose(backward.nodes((8, 6), t), -series.nodes((8, 6), 2.0 - t), atol=1e-14)
    assert backward.span == (-0.25, 2.0)
    np.testing.assert_allclose(backward.own_times, 2.0 - times[::-1])


def test_a_box_scales_components_and_takes_points_of_its_own():
    frames = random_frames(3, 2, 8, 6)
    series = GridSeries(np.arange(3.0), frames, shape=(2,), box=((-1.0, 3.0), (0.0, 10.0)))
    problem = ConvectionDiffusion(series, np.zeros((8, 6)), 0.1, horizon=2.0)
    assert problem.box == series.box
    inside = problem.on_unit_box.velocity
    assert inside.box is None
    np.testing.assert_allclose(
        inside.nodes((8, 6), 0.5) * np.reshape([4.0, 10.0], (2, 1, 1)), series.nodes((8, 6), 0.5)
    )
    x = np.random.default_rng(0).uniform(-5, 5, (7, 2))
    np.testing.assert_allclose(series(x, 0.5), inside(problem.to_unit(x), 0.5) * [4.0, 10.0], atol=1e-12)


def test_data_of_another_box_are_refused():
    velocity = GridSeries(np.arange(3.0), random_frames(3, 2, 8, 6), shape=(2,), box=((0.0, 4.0), (0.0, 3.0)))
    message = r"velocity: expected data on the box of box, .* got .* so that no node repeats the end"
    with pytest.raises(ValueError, match=message):
        ConvectionDiffusion(velocity, np.zeros((8, 6)), 0.1, box=(4.0, 3.5))
    terminal = GridField(np.zeros((1, 8, 6)), box=((0.0, 4.0), (0.0, 3.1)))
    with pytest.raises(ValueError, match="terminal: expected data on the box of velocity"):
        ConvectionDiffusion(velocity, terminal, 0.1)


@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_ab4", "semi_lagrangian", "spectral_adaptive"])
def test_a_series_that_stands_still_is_solved_as_the_field_that_it_is(method):
    nodes = 0.05 * np.random.default_rng(0).uniform(-1, 1, (2, 8, 6))
    series = GridSeries(np.arange(4.0), np.stack([nodes] * 4), shape=(2,))
    settings = {"num_points": (32, 24), "method": method} | ({} if method == "spectral_adaptive" else {"dt": 0.05})
    found, expected = (
        solve(ConvectionDiffusion(v, lambda x: np.cos(TAU * x[..., 0]), 0.2), **settings).u
        for v in (series, GridVelocity(nodes))
    )
    np.testing.assert_allclose(found, expected, atol=1e-6 if method == "spectral_adaptive" else 1e-12)


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_uniform_wind_that_changes_carries_and_diffusion_damps(dim):
    """u(x, t) = exp(-½ σ² |k|² (T - t)) cos(k·(x + ∫F)), F linear between its times."""
    times, speeds = np.array([0.0, 0.25, 1.0]), np.random.default_rng(dim).uniform(-1, 1, (3, dim))
    frames = np.broadcast_to(speeds[(..., *[None] * dim)], (3, dim, *[4] * dim))
    sigma, k = 0.1, TAU * np.arange(1, dim + 1)
    problem = ConvectionDiffusion(GridSeries(times, frames, shape=(dim,)), lambda x: np.cos(x @ k), sigma)
    solution = solve(problem, num_points=16, dt=0.025, method="spectral_rk4")
    way = 0.125 * (speeds[0] + speeds[1]) + 0.375 * (speeds[1] + speeds[2])
    expected = np.exp(-0.5 * sigma**2 * k @ k) * np.cos((node_points(16, dim) + way) @ k)
    np.testing.assert_allclose(solution.u[0], expected, atol=5e-5)


def test_potential_source_and_noise_may_change_in_time_as_well():
    """Without F and for a constant f = 1: u' = V u - g; one mode is damped by ∫½σ²k²."""
    times = np.array([0.0, 0.4, 1.0])

    def series(*values: float, shape: tuple[int, ...] = ()) -> GridSeries:
        return GridSeries(times, np.reshape(values, (3, 1, 1)) * np.ones((1, 1, 4)), shape=shape)

    still = np.zeros((1, 4))
    settings = {"num_points": 16, "dt": 0.02, "method": "spectral_rk4"}
    killed = ConvectionDiffusion(still, lambda x: 1.0 + 0.0 * x[..., 0], 0.1, potential=series(1.0, 3.0, 0.0))
    mean = 0.4 * 2.0 + 0.6 * 1.5
    np.testing.assert_allclose(solve(killed, **settings).u[0], np.exp(-mean), rtol=1e-6)
    fed = ConvectionDiffusion(still, lambda x: 1.0 + 0.0 * x[..., 0], 0.1, source=series(1.0, 3.0, 0.0))
    np.testing.assert_allclose(solve(fed, **settings).u[0], 1.0 + mean, rtol=1e-6)
    spread = ConvectionDiffusion(still, lambda x: np.cos(TAU * x[..., 0]), series(0.1, 0.3, 0.2))
    squares = 0.4 * (0.01 + 0.03 + 0.09) / 3 + 0.6 * (0.09 + 0.06 + 0.04) / 3  # of lines, by Simpson
    expected = np.exp(-0.5 * TAU**2 * squares) * np.cos(TAU * np.arange(16) / 16)
    np.testing.assert_allclose(solve(spread, **settings).u[0], expected, atol=1e-5)


def test_a_gust_in_a_single_frame_is_seen_before_the_first_step():
    frames = np.full((200, 1, 4), 0.1)
    frames[117] = 50.0
    series = GridSeries(np.linspace(0.0, 1.0, 200), frames, shape=(1,))
    problem = ConvectionDiffusion(series, lambda x: np.cos(TAU * x[..., 0]), 0.1)
    solution = solve(problem, num_points=16, dt=1e-3, method="spectral_rk4")
    assert solution.courant == pytest.approx(50.0 * 1e-3 * 16)
