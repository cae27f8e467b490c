"""Restart files and streamed frames: a solve that is cut off anywhere ends with the same numbers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import xarray as xr

import pdekit.equation.solver
from pdekit import ConvectionDiffusion, solve
from pdekit.equation.plan import UnstableError
from pdekit.equation.storage import Checkpoint, CheckpointError, FileFrames
from studies.certificate.mutations import survivors

TAU = 2.0 * np.pi

# these small grids do not resolve their problems; what is compared is whether two solves of them agree
pytestmark = pytest.mark.filterwarnings("ignore::pdekit.ResolutionWarning")


def problem(sigma: float = 0.15) -> ConvectionDiffusion:
    nodes = np.random.default_rng(2).uniform(-0.5, 0.5, (2, 8, 8))
    terminal = np.random.default_rng(3).uniform(-1, 1, (8, 8))
    return ConvectionDiffusion(nodes, terminal, sigma)


class Cut(Exception):
    pass


def cut_after(monkeypatch, saves: int) -> None:
    """Stop the run right after its n-th restart file."""
    count = 0
    original = Checkpoint.save

    def save(self, arrays, **numbers):
        nonlocal count
        original(self, arrays, **numbers)
        count += 1
        if count == saves:
            raise Cut

    monkeypatch.setattr(Checkpoint, "save", save)


@pytest.mark.parametrize("saves", [1, 2, 7, 19])
@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_ab4", "spectral_adaptive", "semi_lagrangian"])
@pytest.mark.parametrize("stream", [False, True], ids=["memory", "stream"])
def test_a_restarted_solve_ends_with_the_same_bits(monkeypatch, tmp_path, method, saves, stream):
    settings = {"num_points": 24, "dt": 0.05, "method": method, "times": [1.0, 0.8, 0.35, 0.0]}
    if method == "spectral_adaptive":
        settings |= {"rtol": 1e-7, "dt": 0.02}
    expected = solve(problem(), **settings)
    files = {"checkpoint": tmp_path / "restart.npz", "checkpoint_seconds": 0.0}
    if stream:
        files["frames_to"] = tmp_path / "u.nc"
    with monkeypatch.context() as patch:
        cut_after(patch, saves)
        with pytest.raises(Cut):
            solve(problem(), **settings, **files)
    assert not (tmp_path / "u.nc").exists()
    with solve(problem(), **settings, **files) as resumed:
        np.testing.assert_array_equal(resumed.u, expected.u)
        np.testing.assert_array_equal(resumed.time, expected.time)
        assert resumed.attrs["num_steps"] == expected.attrs["num_steps"]
        for name in ("dt", "overshoot", "tail", "warnings"):
            assert resumed.attrs[name] == expected.attrs[name]
    assert not (tmp_path / "restart.npz").exists()
    assert [f.name for f in tmp_path.iterdir()] == (["u.nc"] if stream else [])


@pytest.mark.parametrize(
    ("num_points", "stream"), [(None, False), ((24, 20), False), ((24, 20), True)], ids=["own", "uneven", "stream"]
)
def test_a_solve_with_modes_of_its_own_continues(monkeypatch, tmp_path, num_points, stream):
    """Its modes and frames may have other numbers than the equation's."""
    settings = {"rtol": 1e-4, "num_points": num_points, "times": [1.0, 0.8, 0.35, 0.0]}
    expected = solve(problem(), **settings)
    files = {"checkpoint": tmp_path / "restart.npz", "checkpoint_seconds": 0.0}
    if stream:
        files["frames_to"] = tmp_path / "u.nc"
    with monkeypatch.context() as patch:
        cut_after(patch, 2)
        with pytest.raises(Cut):
            solve(problem(), **settings, **files)
    with solve(problem(), **settings, **files) as resumed:
        np.testing.assert_array_equal(resumed.u, expected.u)


@pytest.mark.parametrize("method", ["spectral_rk4", "spectral_ab4", "semi_lagrangian"])
def test_a_solve_can_continue_on_a_finer_grid(monkeypatch, tmp_path, method):
    settings = {"dt": 0.01, "method": method}
    files = {"checkpoint": tmp_path / "restart.npz", "checkpoint_seconds": 0.0}
    with monkeypatch.context() as patch:
        cut_after(patch, 50)
        with pytest.raises(Cut):
            solve(problem(0.25), num_points=32, **settings, **files)
    resumed = solve(problem(0.25), num_points=64, **settings, **files).u[0].values
    direct = solve(problem(0.25), num_points=64, **settings).u[0].values
    assert np.abs(resumed - direct).max() < (0.03 if method == "semi_lagrangian" else 1e-3)
    assert np.abs(resumed).max() <= np.abs(problem(0.25).terminal).max()


def test_streamed_frames_are_the_frames_in_memory(tmp_path):
    settings = {"num_points": 16, "dt": 0.05, "times": np.linspace(0, 1, 6)}
    memory = solve(problem(), **settings)
    with solve(problem(), frames_to=tmp_path / "u.nc", **settings) as stored:
        xr.testing.assert_equal(stored.load(), memory)
        assert stored.attrs["method"] == memory.attrs["method"]


def test_a_killed_solve_continues(tmp_path):
    """SIGKILL at a moment of the system's choosing; the script is the same before and after."""
    script = (
        "import numpy as np, sys; from pdekit import ConvectionDiffusion, solve\n"
        "v = np.random.default_rng(0).uniform(-.3, .3, (2, 8, 8))\n"
        "f = np.random.default_rng(1).uniform(-1, 1, (8, 8))\n"
        "u = solve(ConvectionDiffusion(v, f, .2), num_points=96, dt=2e-4, method='spectral_ab4',\n"
        "          checkpoint=sys.argv[1] + '/c.npz', checkpoint_seconds=0.02).u\n"
        "np.save(sys.argv[1] + '/u.npy', u)\n"
    )
    reference, killed = tmp_path / "reference", tmp_path / "killed"
    reference.mkdir()
    killed.mkdir()
    subprocess.run([sys.executable, "-c", script, str(reference)], check=True)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", script, str(killed)])
        deadline = time.monotonic() + 60
        before = (killed / "c.npz").stat().st_mtime_ns if (killed / "c.npz").exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            if (killed / "c.npz").exists() and (killed / "c.npz").stat().st_mtime_ns > before:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            time.sleep(0.001)
    subprocess.run([sys.executable, "-c", script, str(killed)], check=True)
    np.testing.assert_array_equal(np.load(killed / "u.npy"), np.load(reference / "u.npy"))


def test_files_that_do_not_fit_are_refused_with_the_reason(monkeypatch, tmp_path):
    path = tmp_path / "restart.npz"
    files = {"checkpoint": path, "checkpoint_seconds": 0.0, "num_points": 16, "dt": 0.1}
    with monkeypatch.context() as patch:
        cut_after(patch, 3)
        with pytest.raises(Cut):
            solve(problem(), method="spectral_rk4", **files)
    whole = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"restart.npz: made for sigma = 0.15, not 0.2"):
        solve(problem(0.2), method="spectral_rk4", **files)
    with pytest.raises(CheckpointError, match="made for method = 'spectral_rk4', not 'semi_lagrangian'"):
        solve(problem(), method="semi_lagrangian", **files)
    other = ConvectionDiffusion(problem().velocity, -problem().terminal, 0.15)
    with pytest.raises(CheckpointError, match="made for terminal = 'nodes"):
        solve(other, method="spectral_rk4", **files)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="expected a checkpoint of solve"):
        solve(problem(), method="spectral_rk4", **files)
    path.write_text("something else")
    with pytest.raises(CheckpointError, match="expected a checkpoint of solve"):
        solve(problem(), method="spectral_rk4", **files)


@pytest.mark.parametrize("changed", ["velocity", "terminal"])
def test_a_restart_file_of_another_function_is_refused(monkeypatch, tmp_path, changed):
    def build(factor):
        speed, height = (factor, 1.0) if changed == "velocity" else (1.0, factor)
        return ConvectionDiffusion(
            lambda x, t: 0.3 * speed * np.sin(TAU * x) * np.cos(t),
            lambda x: height * np.cos(TAU * x[..., 0]),
            0.2,
            dim=1,
        )

    files = {"checkpoint": tmp_path / "c.npz", "checkpoint_seconds": 0.0, "num_points": 32, "dt": 0.1}
    with monkeypatch.context() as patch:
        cut_after(patch, 3)
        with pytest.raises(Cut):
            solve(build(1.0), **files)
    with pytest.raises(CheckpointError, match=f"made for {changed} = "):
        solve(build(1.001), **files)
    same = solve(build(1.0), **files).u  # the same values from another function object
    np.testing.assert_array_equal(same, solve(build(1.0), num_points=32, dt=0.1).u)


def test_an_unstable_solve_never_writes_a_restart_file_that_is_not_finite(tmp_path):
    rough = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64))
    unstable = ConvectionDiffusion(rough, problem().terminal, 0.01)
    with pytest.raises(UnstableError):
        solve(
            unstable, num_points=64, dt=5e-3, method="spectral_rk4", checkpoint=tmp_path / "c.npz", checkpoint_seconds=0
        )
    with np.load(tmp_path / "c.npz") as stored:
        assert np.isfinite(stored["state"]).all()
    with pytest.raises(ValueError, match="expected finite values, got some that are not in 'state'"):
        Checkpoint(tmp_path / "d.npz", {}).save({"state": np.array([1.0, np.nan])})
    assert not (tmp_path / "d.npz").exists()


def test_an_interruption_passes_through_at_once(monkeypatch, tmp_path):
    def interrupt(self, *args):
        raise KeyboardInterrupt

    monkeypatch.setattr(pdekit.equation.solver.LawsonMethod, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        solve(problem(), num_points=16, dt=0.1, method="spectral_rk4", frames_to=tmp_path / "u.nc")
    assert not (tmp_path / "u.nc").exists()


def test_a_restart_before_the_first_frame_is_due(monkeypatch, tmp_path):
    files = {"checkpoint": tmp_path / "c.npz", "checkpoint_seconds": 0.0, "frames_to": tmp_path / "u.nc"}
    settings = {"num_points": 16, "dt": 0.1, "times": [0.0]}
    with monkeypatch.context() as patch:
        cut_after(patch, 3)
        with pytest.raises(Cut):
            solve(problem(), **settings, **files)
    with solve(problem(), **settings, **files) as resumed:
        np.testing.assert_array_equal(resumed.u, solve(problem(), **settings).u)


def test_streamed_frames_go_with_their_own_grid_and_call(monkeypatch, tmp_path):
    files = {"checkpoint": tmp_path / "c.npz", "checkpoint_seconds": 0.0, "method": "spectral_rk4"}
    with monkeypatch.context() as patch:
        cut_after(patch, 3)
        with pytest.raises(Cut):
            solve(problem(), num_points=16, dt=0.1, frames_to=tmp_path / "u.nc", **files)
    with pytest.raises(CheckpointError, match=r"expected frames of shape \(2, 32, 32\), got \(2, 16, 16\)"):
        solve(problem(), num_points=32, dt=0.1, frames_to=tmp_path / "u.nc", **files)
    with pytest.raises(CheckpointError, match="made for frames = 'file', not 'memory'"):
        solve(problem(), num_points=16, dt=0.1, **files)


def test_a_damaged_restart_file_is_refused_or_what_it_was(tmp_path):
    stored = Checkpoint(tmp_path / "c.npz", {"sigma": 0.1})
    field = np.random.default_rng(0).random((8, 8))
    stored.save({"u": field, "frame_0": field[:2]}, t=0.5)
    for damaged, (arrays, numbers) in survivors(
        tmp_path / "c.npz", 300, seed=0, read=stored.load, refuses=CheckpointError
    ):
        assert numbers == {"t": 0.5}, damaged  # the damage is in a time stamp or the like
        assert arrays.keys() == {"u", "frame_0"}, damaged
        assert np.array_equal(arrays["u"], field), damaged


def test_a_member_whose_entry_is_zeroed_is_refused(tmp_path):
    """Length 0 and checksum 0 agree with each other: the member reads as no bytes, which are no array."""
    stored = Checkpoint(tmp_path / "c.npz", {"sigma": 0.1})
    stored.save({"u": np.ones((8, 8))}, t=0.5)
    content = bytearray((tmp_path / "c.npz").read_bytes())
    entry = content.rindex(b"PK\1\2", 0, content.rindex(b"u.npy"))
    content[entry + 16 : entry + 24] = bytes(8)  # checksum and compressed length
    (tmp_path / "c.npz").write_bytes(content)
    with pytest.raises(CheckpointError, match="expected a checkpoint of solve"):
        stored.load()


@pytest.fixture
def frames(tmp_path):
    """Two frames that were written before an interruption, and what the restart file holds of them."""
    field = np.random.default_rng(0).random((2, 8, 8))
    with FileFrames(tmp_path / "u.nc", 2, (8, 8), 2) as written:
        for number in range(2):
            written.put(number, field[number])
    return field, written.arrays()


def restored(folder, arrays):
    with FileFrames(folder / "u.nc", 2, (8, 8), 2) as found:
        found.restore(arrays)
        return np.stack([found._read(i) for i in range(2)])


def test_a_frame_that_changed_on_disk_is_refused(tmp_path, frames):
    field, arrays = frames
    partial = tmp_path / "u.nc.partial"
    content = partial.read_bytes()
    place = content.index(field[1, 3].tobytes())
    for damaged in (content[:place] + b"\0" + content[place + 1 :], content[: len(content) // 2], b"no frames"):
        partial.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="expected the frames of this solve so far, got others or a damaged"):
            restored(tmp_path, arrays)
    partial.write_bytes(content)
    np.testing.assert_array_equal(restored(tmp_path, arrays), field)
    with pytest.raises(CheckpointError, match="got a restart file of an older one"):
        restored(tmp_path, {})


def test_damaged_frames_are_refused_or_what_they_were(tmp_path, frames):
    """No library reads them, which damage could keep busy for ever."""
    field, arrays = frames
    partial = tmp_path / "u.nc.partial"
    for damaged, found in survivors(
        partial, 300, seed=0, read=lambda: restored(tmp_path, arrays), refuses=CheckpointError
    ):
        np.testing.assert_array_equal(found, field, err_msg=repr(damaged))  # the damage is behind them or in the key


def test_a_frame_that_a_kill_cut_short_is_written_again(tmp_path, frames):
    """The restart file is older than the last frame, of which any part may be on disk."""
    field, arrays = frames
    arrays = arrays | {"frames_on_disk": np.array([0])}
    partial = tmp_path / "u.nc.partial"
    content = partial.read_bytes()
    for size in range(content.index(field[1].tobytes()) - 16, len(content), 37):
        partial.write_bytes(content[:size])
        with FileFrames(tmp_path / "u.nc", 2, (8, 8), 2) as found:
            found.restore(arrays)
            found.put(1, field[1])
        assert partial.read_bytes() == content


def test_frames_of_another_solve_are_not_taken_for_ones_own(tmp_path, frames):
    """Same shape, same file: written after the restart file was."""
    _, arrays = frames
    with FileFrames(tmp_path / "u.nc", 2, (8, 8), 2) as other:
        for number in range(2):
            other.put(number, np.zeros((8, 8)))
    with pytest.raises(CheckpointError, match="expected the frames of this solve so far, got others"):
        restored(tmp_path, arrays)


def test_two_solves_do_not_write_their_frames_to_one_file(tmp_path):
    pytest.importorskip("fcntl")
    with FileFrames(tmp_path / "u.nc", 2, (8, 8), 2) as first:
        first.put(0, np.zeros((8, 8)))
        with pytest.raises(BlockingIOError, match=r"u.nc: expected no other solve to write its frames there") as error:
            solve(problem(), num_points=16, dt=0.1, frames_to=tmp_path / "u.nc")
        assert "\n" not in str(error.value)
        first.put(1, np.ones((8, 8)))
        assert first._read(0).max() == 0.0
    with solve(problem(), num_points=16, dt=0.1, frames_to=tmp_path / "u.nc") as second:
        assert second.u.shape == (2, 16, 16)
    assert [file.name for file in tmp_path.iterdir()] == ["u.nc"]


def test_a_compressed_restart_file_is_refused_unread(tmp_path):
    """What could be a few bytes of any size."""
    np.savez_compressed(tmp_path / "c.npz", meta=np.array("{}"), u=np.zeros(1000))
    with pytest.raises(CheckpointError, match="expected a checkpoint of solve"):
        Checkpoint(tmp_path / "c.npz", {}).load()


def restarted(path, arrays, changes, meta=None):
    """Solve on from the arrays of a restart file with some changed, None for absent."""
    content = {name: value for name, value in (arrays | changes).items() if value is not None}
    meta = meta or json.loads(str(arrays["meta"]))
    meta["arrays"] = sorted(content.keys() - {"meta"})
    np.savez(path, **content | {"meta": np.array(json.dumps(meta))})
    return solve(problem(), num_points=16, dt=0.05, method="spectral_ab4", times=[0.0, 0.5, 1.0], checkpoint=path)


def test_a_made_up_restart_file_is_refused_in_one_line(monkeypatch, tmp_path):
    """Its checksums are right, its content is not that of a solve."""
    path = tmp_path / "restart.npz"
    cut_after(monkeypatch, 2)
    options = {"num_points": 16, "dt": 0.05, "method": "spectral_ab4", "times": [0.0, 0.5, 1.0]}
    with pytest.raises(Cut):
        solve(problem(), checkpoint=path, checkpoint_seconds=0.0, **options)
    monkeypatch.undo()
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    whole = restarted(path, arrays, {})
    assert np.array_equal(whole.u, solve(problem(), **options).u)
    frame = next(name for name in arrays if name.startswith("frame_"))
    others = ["a", np.nan, 1.0, np.zeros(0), np.zeros((5, 5)), np.zeros(3, [("a", "f8")]), None]
    changes = [{name: other if other is None else np.array(other)} for name in ("state", frame) for other in others]
    for change in (*changes, {"grid": np.array(["a"])}, {"grid": None}, {"frame_x": np.zeros(3)}):
        with pytest.raises(CheckpointError, match=r"expected .* of solve") as raised:
            restarted(path, arrays, change)
        assert "\n" not in str(raised.value)
    for part, name in (("numbers", "s"), ("numbers", "next_frame"), ("description", "times")):
        for other in ("x", None, [1, [2]], -3, 10**9, 10**400, math.nan):
            meta = json.loads(str(arrays["meta"]))
            meta[part][name] = other
            with pytest.raises(CheckpointError, match=r"restart\.npz: (expected|made for)") as raised:
                restarted(path, arrays, {}, meta)
            assert "\n" not in str(raised.value)
