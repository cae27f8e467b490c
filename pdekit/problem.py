"""The convection-diffusion problem, apart from any way of solving it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pdekit.field import (
    Box,
    Field,
    Frame,
    Function,
    Grid,
    GridField,
    as_field,
    as_grid,
    check_nodes,
    from_unit,
    node_points,
    to_unit,
)
from pdekit.noise import Noise, Sigma
from pdekit.numerics.spectral import resample
from pdekit.numerics.splines import SplineTable, spline_table
from pdekit.runtime.checks import check_real, check_whole, real_values
from pdekit.velocity import as_velocity

Terminal = NDArray | Callable[[NDArray], NDArray]


@dataclass(frozen=True, eq=False, init=False)
class ConvectionDiffusion:
    """∂u/∂t + F·∇u + ½ tr(σσᵀ∇²u) - V u + g = 0 on a periodic box, u(x, T) = f(x)   (Eq. 10, where V = g = 0).

    Its solution is the Feynman-Kac expectation (Eq. 14)

        u(x, t) = E[ f(X_T) exp(-∫V) + ∫ g exp(-∫V) ds | X_t = x ]   over the paths of   dX = F(X, t) dt + σ dB.

    velocity: F, node values (d, N₁, ..., N_d), continued trigonometrically; or one of `GridVelocity`,
        `RedrawnVelocity`, `CompiledVelocity`, a `compiled` function; or a callable (x, t) -> F with x and F of shape
        (..., d). In lengths of x per time of t.
    terminal: f, node values (N₁, ..., N_d), continued trigonometrically, or a `GridField` of these; or a callable
        x -> f with x (..., d), f (...).
        With a further axis at the end of either, (N₁, ..., N_d, K) or (..., K), it stands for K functions, which share
        one flow, and u gets that axis, too.
    sigma: noise of the paths, in lengths per square root of time: a number >= 0, a vector (d,) of the axes, a matrix
        (d, m) for m Brownian motions, or a callable (x, t) -> one of these with x (..., d).
    dim: number of space dimensions; needed only where both velocity and terminal are plain callables, and told
        by them otherwise.
    horizon: the final time T.
    potential: V, a rate of killing per time (negative for growth), and source: g, of u per time: a number, node values
        (N₁, ..., N_d), or a callable (x, t) -> (...).
    box: the periodic box, as lengths (L₁, ..., L_d) from 0 on or as ends ((a₁, b₁), ..., (a_d, b_d)); by default that
        of the data, where a field has one (`from_xarray`), or the unit box. Node i of N stands at a + i (b - a) / N.
    domain: "box", or "space" for paths in the whole of R^d, which functions describe and no grid can hold: `solve`
        refuses it.

    Raises ValueError for a negative or non-finite sigma, a non-positive horizon, wrong shapes, complex or non-finite
    values, a box without length or other than that of the data, data that do not cover [0, T], a field that is said to
    be steady and changes, or a dimension that is no whole number, cannot be told or does not agree.
    """

    velocity: Field
    terminal: Terminal
    sigma: Any
    dim: int
    horizon: float
    potential: Field | None
    source: Field | None
    box: Box | None
    domain: str

    def __init__(
        self,
        velocity: Field | Function | ArrayLike,
        terminal: Field | Terminal | ArrayLike,
        sigma: Sigma | Noise,
        dim: int = 0,
        horizon: float = 1.0,
        *,
        potential: Field | Function | ArrayLike | None = None,
        source: Field | Function | ArrayLike | None = None,
        box: Sequence[Any] | None = None,
        domain: str = "box",
    ) -> None:
        horizon = check_real("horizon", horizon, "a positive time")
        dims = {"dim": dim} if check_whole("dim", dim, 0) else {}
        places: dict[str, Field] = {"terminal": terminal} if isinstance(terminal, Field) else {}
        if isinstance(terminal, Field):
            terminal = _terminal_of(terminal)
        if not callable(terminal):
            terminal = check_nodes("terminal", terminal)
        told = places["terminal"].dim if places else dims.get("dim")
        if told is None and not isinstance(velocity, Field) and getattr(velocity, "dim", None) is None:
            _check_unambiguous(velocity, terminal)
        velocity = as_velocity(velocity, _told(told, terminal))
        dims = {"velocity": velocity.dim} | dims
        if len(set(dims.values())) != 1:
            raise ValueError(f"dimensions do not agree: {', '.join(f'{n} has {d}' for n, d in dims.items())}")
        dim = velocity.dim
        if not callable(terminal):
            if terminal.ndim not in (dim, dim + 1) and terminal.ndim in (1, 2, 3):
                raise ValueError(f"dimensions do not agree: velocity has {dim}, terminal has {terminal.ndim}")
            if terminal.ndim not in (dim, dim + 1) or min(terminal.shape[:dim]) < 2 or terminal.size == 0:
                raise ValueError(f"terminal: expected node values of shape (N, ..., N), got {terminal.shape}")
        if domain not in ("box", "space"):
            raise ValueError(f"domain: expected 'box' or 'space', got {domain!r}")
        values = {
            "velocity": velocity,
            "terminal": terminal,
            "sigma": sigma,
            "dim": dim,
            "horizon": horizon,
            "potential": None if potential is None else as_field("potential", potential, dim),
            "source": None if source is None else as_field("source", source, dim),
            "box": None if box is None else _ends(box, dim),
            "domain": domain,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        fields = self._fields()
        object.__setattr__(self, "box", _common_box(self.box, fields | places))
        _check_spans(fields, horizon)
        _common_units(dim, fields)
        if domain == "space" and (self.box or any(field.periodic for field in self._fields().values())):
            raise ValueError("domain: expected functions, and no box, with 'space'; node values and boxes are periodic")
        if self.noise.number is not None and not isinstance(sigma, Noise):
            object.__setattr__(self, "sigma", self.noise.number)
        for field in self._fields().values():
            field.check_steady(self.from_unit(np.random.default_rng(0).random((16, dim))), horizon)

    @cached_property
    def noise(self) -> Noise:
        """σ, whatever it was given as."""
        return self.sigma if isinstance(self.sigma, Noise) else Noise.of(self.sigma, self.dim, self._middle[0])

    @property
    def _middle(self) -> NDArray[np.float64]:
        """A point (1, d) of the box, where functions are asked for the shape of their values."""
        return np.asarray(self.from_unit(np.full((1, self.dim), 0.5)))

    @property
    def diffusivity(self) -> float:
        """½σ², the coefficient of the Laplacian, where σ is a number. Raises ValueError where it is not."""
        if self.noise.number is None:
            raise ValueError("sigma: expected a number, got a vector, a matrix or a function")
        return 0.5 * self.noise.number**2

    @cached_property
    def num_fields(self) -> int | None:
        """K of f with a trailing axis, None for a single function."""
        if callable(self.terminal):
            value = np.asarray(self.terminal(self._middle))
            if value.ndim == 2 and value.shape[1] == 0:
                raise ValueError(f"terminal(x): expected at least one function, got shape {value.shape}")
            return value.shape[1] if value.ndim == 2 else None
        return self.terminal.shape[-1] if self.terminal.ndim > self.dim else None

    def only(self, k: int) -> ConvectionDiffusion:
        """The problem of the function number k of several."""
        if callable(self.terminal):
            several = self.terminal
            return replace(self, terminal=lambda x: np.asarray(several(x))[..., k])
        return replace(self, terminal=self.terminal[..., k])

    @property
    def steady(self) -> bool:
        """Whether the equation does not depend on time."""
        return all(field.steady for field in self._fields().values())

    @property
    def plain(self) -> bool:
        """Whether it is Eq. 10 itself: no potential, no source, and one number for σ."""
        return self.potential is None and self.source is None and self.noise.number is not None

    def _fields(self) -> dict[str, Field]:
        """All that depends on x and t, by name."""
        fields = {
            "velocity": self.velocity,
            "sigma": self.noise.field,
            "potential": self.potential,
            "source": self.source,
        }
        return {name: field for name, field in fields.items() if field is not None}

    # coordinates

    @property
    def origin(self) -> NDArray[np.float64]:
        """(d,), the lower ends of the box."""
        return np.array([a for a, _ in self.box]) if self.box else np.zeros(self.dim)

    @property
    def lengths(self) -> NDArray[np.float64]:
        """(d,), of the box."""
        return np.array([b - a for a, b in self.box]) if self.box else np.ones(self.dim)

    def to_unit(self, x: NDArray) -> NDArray[np.float64]:
        """Points (..., d) of the box as points of the unit box."""
        return to_unit(x, self.box)

    def from_unit(self, y: NDArray) -> NDArray[np.float64]:
        """Points (..., d) of the unit box as points of the box."""
        return from_unit(y, self.box)

    @property
    def units(self) -> tuple[str, ...]:
        """Of each axis and of time, as the data of its fields say; "" where they do not."""
        return _common_units(self.dim, self._fields())

    @cached_property
    def on_unit_box(self) -> ConvectionDiffusion:
        """The same problem in the coordinates y = (x - a) / L, where F and the rows of σ are those over L."""
        if self.box is None:
            return self
        origin, lengths, rates = tuple(self.origin), tuple(self.lengths), tuple(1.0 / self.lengths)

        def seen(field: Field, factor: tuple[float, ...] | None = None) -> Field:
            return field.seen(Frame(origin, lengths, factor or (1.0,) * field.components))

        noise = self.noise.scaled(*rates)
        function = self.terminal
        return ConvectionDiffusion(
            seen(self.velocity, rates),
            partial(_scaled, function, self.origin, self.lengths) if callable(function) else function,
            noise if noise.field is None else noise.seen(seen(noise.field)),
            self.dim,
            self.horizon,
            potential=self.potential and seen(self.potential),
            source=self.source and seen(self.source),
        )

    # the terminal condition

    @cached_property
    def _terminal_table(self) -> SplineTable:
        nodes = np.asarray(self.terminal)
        several = nodes.ndim > self.dim
        return spline_table(np.moveaxis(nodes, -1, 0) if several else nodes[None], "trigonometric")

    def evaluate_terminal(self, x: NDArray) -> NDArray[np.float64]:
        """f at points (..., d), (...) or (..., K), checked like the velocity's values."""
        if callable(self.terminal):
            out = real_values("terminal(x)", self.terminal(x.copy()))
        else:
            out = self._terminal_table(self.to_unit(x))
            out = out[..., 0] if self.num_fields is None else out
        expected = x.shape[:-1] if self.num_fields is None else (*x.shape[:-1], self.num_fields)
        if out.shape != expected:
            raise ValueError(f"terminal(x): expected shape {expected} for points {x.shape}, got {out.shape}")
        if not np.isfinite(out).all():
            raise ValueError(f"terminal(x): expected finite values, got {out[~np.isfinite(out)][0]}")
        return out

    def check_periodic(self) -> list[str]:
        """Whether F, f, σ, V and g have the period of the box along each axis, where they are given as functions.

        Compared at fixed irregular points x and times: F(x + e) with F(x), relative to max|F|, and f(x + e) with f(x),
        relative to its range, for e the period along an axis. Up to 1e-5, the rounding of single precision, is taken
        for equal. Returns one line for each function that is not: what stands in the box is continued periodically on a
        grid, while paths that leave it see the function as it is there, so that the two answer different questions.
        Within a few per cent of a box at its edges a difference above 0.05 is no such question but a jump that no grid
        resolves, F = -x or f = x² among them.

        Raises ValueError there, with the cure.
        """
        rng = np.random.default_rng(0)
        times = [self.horizon * t for t in (0.1234, 0.5719, 0.9183)]
        letters = {"velocity": "F", "sigma": "σ", "potential": "V", "source": "g"}
        found: list[tuple[str, str, Callable[[NDArray], list[NDArray]]]] = [
            (name, letters[name], partial(_at_times, field, times))
            for name, field in self._fields().items()
            if not field.periodic
        ]
        if callable(self.terminal):
            found.append(("terminal", "f", lambda x: [self.evaluate_terminal(x)]))
        cure = "wrap the coordinates, x - np.floor(x)"
        messages = []
        for name, letter, function in found:
            edge = within = 0.0
            inside = np.stack(function(self.from_unit(rng.random((64, self.dim)))))
            size = float(np.ptp(inside) if letter == "f" else np.abs(inside).max())
            rounding = 1e-12 * float(np.abs(inside).max())
            for axis in range(self.dim):
                x = rng.random((32, self.dim))
                x[:24, axis] = np.repeat([-0.0173, 0.0, 0.0119], 8)
                try:
                    far = np.stack(function(self.from_unit(x + np.eye(self.dim)[axis])))
                    near = np.stack(function(self.from_unit(x)))
                except ValueError as error:
                    messages.append(f"{name}: cannot be evaluated outside the box, where paths lead ({error}); {cure}")
                    break
                gap = np.abs(far - near) - rounding
                edge = max(edge, float(gap[:, :24].max()))
                within = max(within, float(gap.max()))
            difference = f"{name}: expected {letter}(x + e) = {letter}(x) on the periodic box, got a difference of"
            if edge > 0.05 * size:
                raise ValueError(f"{difference} {edge:.3g} at its edge; {cure}, or let it be constant near the edge")
            if within > 1e-5 * size:
                messages.append(f"{difference} {within:.3g}, so that paths which leave it see another {letter}; {cure}")
        return messages

    def terminal_nodes(self, num_points: int | Grid) -> NDArray[np.float64]:
        """f on the nodes of a grid, (N₁, ..., N_d) or (N₁, ..., N_d, K); node values of another grid are resampled."""
        grid = as_grid(num_points, self.dim)
        if callable(self.terminal):
            return self.evaluate_terminal(self.from_unit(node_points(grid, self.dim)))
        return resample(self.terminal, grid, axes=tuple(range(self.dim)))

    @classmethod
    def from_initial_value(
        cls,
        velocity: Field | Function | ArrayLike,
        initial: Field | Terminal | ArrayLike,
        sigma: Sigma,
        *,
        dim: int = 0,
        horizon: float = 1.0,
        **others: Any,
    ) -> ConvectionDiffusion:
        """The terminal-value problem whose u(x, 0) is v(x, T) of the initial-value problem (Eq. 12, Remark 1)

            ∂v/∂t + G(x,t)·∇v = ½ tr(σσᵀ∇²v) - V v + g,   v(x, 0) = v_0(x).

        With u(x, t) = v(x, T - t) the velocity becomes F(x, t) = -G(x, T - t), f = v_0, and σ, V, g run backward.
        others: potential, source, box, domain.
        """
        given = cls(as_velocity(velocity, _told(dim or None, initial)), initial, sigma, dim, horizon, **others)
        none = Frame.none(given.dim, 1)

        def backward(field: Field, sign: float = 1.0) -> Field:
            factor = (sign,) * field.components
            return field.seen(replace(none, factor=factor, sign=-1.0, shift=given.horizon))

        noise = given.noise
        return replace(
            given,
            velocity=backward(given.velocity, -1.0),
            sigma=given.sigma if noise.field is None else noise.seen(backward(noise.field)),
            potential=given.potential and backward(given.potential),
            source=given.source and backward(given.source),
        )


def _terminal_of(field: Field) -> NDArray[np.float64]:
    """The node values (N₁, ..., N_d) or (N₁, ..., N_d, K) of f that is given as a field."""
    if not isinstance(field, GridField):
        raise ValueError("terminal: expected values at one time, got a field that changes; choose one, isel(time=-1)")
    if field.continuation != "trigonometric":
        raise ValueError(f"terminal: expected the continuation 'trigonometric', got {field.continuation!r}")
    return np.moveaxis(field.values, 0, -1) if field.shape else field.values[0]


def _common_box(box: Box | None, fields: dict[str, Field]) -> Box | None:
    """The box that was asked for and that of the fields' data, or a ValueError where they are not one."""
    source = "box"
    for name, field in fields.items():
        if field.box is None:
            continue
        if box is None:
            box, source = field.box, name
        least = 1e-6 * min(b - a for a, b in box)
        if len(box) != len(field.box) or np.abs(np.subtract(box, field.box)).max() > least:
            raise ValueError(
                f"{name}: expected data on the box of {source}, {box}, got {field.box}; node i of N stands at "
                "a + i (b - a) / N, so that no node repeats the end b"
            )
    return box


def _common_units(dim: int, fields: dict[str, Field]) -> tuple[str, ...]:
    """The units that the fields' data have of each axis and of time, or a ValueError where they differ."""
    found = ("",) * (dim + 1)
    for name, field in fields.items():
        units = field.units or found
        if any(own and other and own != other for own, other in zip(units, found, strict=True)):
            raise ValueError(f"{name}: expected units {found}, as other data have, got {units}")
        found = tuple(own or other for own, other in zip(units, found, strict=True))
    return found


def _check_spans(fields: dict[str, Field], horizon: float) -> None:
    """Raise ValueError for a field that is not known at all times of [0, T]."""
    for name, field in fields.items():
        first, last = field.span
        slack = 1e-9 * (last - first) if math.isfinite(last - first) else 0.0
        if not first - slack <= 0.0 < horizon <= last + slack:
            raise ValueError(
                f"{name}: expected times that cover [0, {horizon:g}], got [{first:g}, {last:g}]; take another horizon, "
                "or count time from another start"
            )


def _check_unambiguous(velocity: Any, terminal: Any) -> None:
    """Raise ValueError where nobody says whether the last, short axis of f is one of space or counts functions."""
    if (
        callable(velocity)
        and not callable(terminal)
        and terminal.ndim > 1
        and terminal.shape[-1] < min(8, len(terminal))
    ):
        raise ValueError(
            f"dim: expected the number of space dimensions, as terminal {terminal.shape} may be functions on "
            f"{terminal.ndim - 1} axes or one on {terminal.ndim}"
        )


def _told(dim: int | None, terminal: Field | Terminal | ArrayLike) -> int | None:
    """The dimension of a velocity that does not say it: as told, or of node values of f."""
    if isinstance(terminal, Field):
        return dim or terminal.dim
    return dim or (None if callable(terminal) else np.ndim(terminal))


def _at_times(field: Field, times: Sequence[float], x: NDArray) -> list[NDArray[np.float64]]:
    return [field.at(x, t) for t in times]


def _scaled(function: Callable[[NDArray], NDArray], origin: NDArray, lengths: NDArray, y: NDArray) -> NDArray:
    """A function of points of the box at points of the unit box; unlike a lambda it can be pickled."""
    return function(origin + lengths * y)


def _ends(box: Sequence[Any], dim: int) -> Box:
    """Lengths or ends as ends, or a ValueError."""
    try:
        given = np.array(box)
        values = real_values("box", given) if given.dtype.kind in "iuf" else np.zeros(0)
    except (TypeError, ValueError):  # rows of different lengths
        values = np.zeros(0)
    if values.shape == (dim,):
        values = np.stack([np.zeros(dim), values], axis=-1)
    if values.shape != (dim, 2) or not np.isfinite(values).all() or not (values[:, 1] > values[:, 0]).all():
        raise ValueError(f"box: expected {dim} positive lengths, or ends (a, b) with a < b for each axis, got {box}")
    return tuple((float(a), float(b)) for a, b in values)
