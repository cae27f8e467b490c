"""Full disks, killed workers, terminals and readers that go: one line for the user, and nothing lost that was done.

`tests/faults.py` does the same to whole runs, at random moments; docs/faults.md is its table.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import multiprocessing
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deadly import MARK, at, deadly
from made_up_records import a_score, a_training

import netkit.progress
from netkit import checkpoint
from pdekit import ConvectionDiffusion, feynman_kac, solve
from pdekit.runtime import files
from pdekit.runtime.progress import Progress
from pdekit.runtime.shards import in_order
from studies.lab import records, reporting, run
from studies.lab.networks import Network
from studies.lab.records import Records
from studies.lab.tasks import Settings, Training, tasks_for

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and signals")

WRITERS: dict[str, Callable[[Path, bytes], None]] = {
    "pdekit": files.write_whole,
    "netkit": lambda path, content: checkpoint.write_whole(path, [content]),
}
OLD, NEW = b"old" * 1000, b"new" * 1000


def in_fork(work: Callable[[], Any]) -> str:
    """What `work` raises in a process of its own, "" for nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = ""
        try:
            work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode()[:4096])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    assert os.waitpid(child, 0)[1] == 0
    return said


# Files


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(writer: str, tmp_path: Path) -> None:
    path, write = tmp_path / "file", WRITERS[writer]
    write(path, OLD)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        write(path, NEW)

    said = in_fork(limited)
    assert said.startswith(f"OSError: [Errno {errno.EFBIG}] ")
    assert said.endswith(f": '{path}'")
    assert "stays" in said
    assert "\n" not in said
    assert path.read_bytes() == OLD
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_another_process_sweeps_up_is_written_again(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = os.replace, iter(range(3))

    def swept(source: Path, target: Path) -> None:
        if next(left, None) is not None:
            source.unlink()
        replace(source, target)

    monkeypatch.setattr(os, "replace", swept)
    WRITERS[writer](tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == NEW
    monkeypatch.setattr(os, "replace", lambda source, target: source.unlink() or replace(source, target))
    with pytest.raises(FileExistsError, match="expected one process to write it, got others"):
        WRITERS[writer](tmp_path / "file", OLD)
    assert (tmp_path / "file").read_bytes() == NEW


@pytest.mark.parametrize("writer", WRITERS)
def test_what_killed_writers_left_is_swept_up_and_nothing_else(writer: str, tmp_path: Path) -> None:
    suffix = "partial" if writer == "pdekit" else "tmp"
    path = tmp_path / "run[1].bin"
    stale = tmp_path / f"run[1].bin.123.{suffix}"
    others = [tmp_path / f"run1.bin.123.{suffix}", tmp_path / "run[1].bin.json"]
    for file in (stale, *others):
        file.touch()
    WRITERS[writer](path, NEW)
    assert not stale.exists()
    assert all(file.exists() for file in others)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_that_takes_no_files_is_named(writer: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file") as raised:
        WRITERS[writer](tmp_path / "file" / "below", NEW)
    assert "\n" not in str(raised.value)
    if os.geteuid() == 0:
        pytest.skip("root may write to read-only folders")
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    with pytest.raises(PermissionError, match=r"below'$"):
        WRITERS[writer](folder / "below", NEW)


def a_problem() -> ConvectionDiffusion:
    rng = np.random.default_rng(0)
    return ConvectionDiffusion(rng.uniform(-0.3, 0.3, (2, 8, 8)), rng.uniform(-1, 1, (8, 8)), 0.3)


@pytest.mark.filterwarnings("ignore::pdekit.ResolutionWarning")
@pytest.mark.parametrize("share", [0.3, 0.97, 0.999], ids=["frames", "structure", "end"])
def test_a_disk_that_is_full_at_any_frame_or_at_the_end_costs_nothing(share: float, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_points": 16, "dt": 0.1, "times": np.linspace(0, 1, 11), "method": "spectral_rk4"}
    files = {"checkpoint": tmp_path / "c.npz", "checkpoint_seconds": 0, "frames_to": tmp_path / "u.nc"}
    with solve(a_problem(), **options, frames_to=tmp_path / "whole.nc") as whole:
        expected = whole.u.values
    most = int(share * (tmp_path / "whole.nc").stat().st_size)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        solve(a_problem(), **options, **files)

    said = in_fork(limited)
    assert said.startswith(f"OSError: [Errno {errno.EFBIG}] ")
    assert "\n" not in said
    # of the smallest disk the restart file has no room
    assert {file.name for file in tmp_path.iterdir()} - {"c.npz"} == {"whole.nc", "u.nc.partial"}
    with solve(a_problem(), **options, **files) as continued:
        np.testing.assert_array_equal(continued.u, expected)
    assert {file.name for file in tmp_path.iterdir()} == {"whole.nc", "u.nc"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_file_system_without_room_is_told(small_disk: Path) -> None:
    path = small_disk / "file"
    for write in WRITERS.values():
        write(path, OLD)
        with pytest.raises(OSError, match=r"No space left on device; .* stays") as raised:
            write(path, bytes(100_000))
        assert raised.value.errno == errno.ENOSPC
        assert path.read_bytes() == OLD


@pytest.mark.parametrize("steps", range(1, 5))
def test_a_merge_that_is_killed_between_its_files_is_whole(
    steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Records([a_training("A", 0)], [a_score("A", 0, "nat", [1, 2])])
    new = Records([a_training("A", 0, weights="others")], [a_score("B", 1, "nat", [3, 4, 5])])
    records.merge(old, tmp_path)
    write, left = files.write_whole, iter(range(steps))

    def killed(path: Path, content: bytes) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(records, "write_whole", killed)
        patch.setattr(records, "write_json", lambda path, content: killed(path, json.dumps(content).encode()))
        records.merge(new, tmp_path)
    found = records.read(tmp_path)
    assert [line["weights"] for line in found.trainings] == ["others"]
    assert [(line["network"], line["correct"]) for line in found.scores] == [("B", [3, 4, 5])]
    records.merge(Records([], []), tmp_path)
    assert records.read(tmp_path) == found
    assert {file.name for file in tmp_path.iterdir()} == {"trainings.jsonl", "scores.jsonl", "outcomes.jsonl"}


# Terminals, readers and signals


def with_pdekit(tick: Callable[[], None]) -> None:
    with Progress("solve", total=10.0) as bar:
        for done in range(10):
            bar.update(done)
            tick()


def with_netkit(tick: Callable[[], None]) -> None:
    with netkit.progress.progress_bar("training") as report:
        for done in range(10):
            report(done, 10)
            tick()


@pytest.mark.parametrize("work", [with_pdekit, with_netkit])
def test_a_terminal_that_is_closed_takes_its_bar_and_not_the_work(work: Callable[..., None], tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.close(ours)
            sys.stderr = os.fdopen(theirs, "w")
            work(lambda: time.sleep(0.15))
            (tmp_path / "done").touch()
        os._exit(0)
    os.close(theirs)
    assert os.read(ours, 100)  # a bar is shown
    os.close(ours)
    os.waitpid(child, 0)
    assert (tmp_path / "done").exists()


class ClosedTerminal(io.StringIO):
    """Takes a number of writes, and is gone then."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = iter(range(writes))

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if next(self.left, None) is None:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("writes", [*range(5), 100])
@pytest.mark.parametrize("work", [with_pdekit, with_netkit])
def test_a_terminal_may_be_closed_at_any_write(
    work: Callable[..., None], writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = ClosedTerminal(writes)
    monkeypatch.setattr(sys, "stderr", terminal)
    work(lambda: time.sleep(0.02))
    assert sys.stderr is terminal  # the bar had put itself between
    assert bool(terminal.getvalue()) == bool(writes)


def command(body: str, **options: Any) -> subprocess.Popen[str]:
    """A program that does `body` as studies do."""
    # A background shell hands on SIGINT ignored.
    start = "import os, signal, sys, time\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    text = f"{start}from studies.lab.reporting import *\nwith one_line_errors():\n    {body}\n"
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", text], stdout=pipe, stderr=pipe, text=True, **options)


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", 143, "interrupted\n"),
        ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(60)", 129, "interrupted\n"),
        ("signal.raise_signal(signal.SIGINT); time.sleep(60)", 130, "interrupted\n"),
        ("raise MemoryError", 1, "error: not enough memory: Python had none left; fewer workers, or less at a time"),
        ("import numpy; numpy.ones(2**50)", 1, "error: not enough memory: Unable to allocate"),
        ("raise RuntimeError('[x] can\\'t allocate memory: 9 bytes\\nmore')", 1, "error: not enough memory: [x]"),
        ("raise ValueError('a\\nb.png: expected an image')", 2, "error: a b.png: expected an image"),
        ("raise RuntimeError('a bug')", 1, "Traceback"),
        ("raise OSError(28, 'No space left on device', 'file')", 1, "error: [Errno 28] No space left on device"),
    ],
)
def test_a_command_ends_in_one_line(body: str, code: int, said: str) -> None:
    with command(body) as process:
        error = process.communicate()[1]
    assert error.startswith(said)
    assert process.returncode == code
    assert error.count("\n") == 1 or said == "Traceback"


def test_a_command_that_was_started_to_outlive_its_terminal_does() -> None:
    with command("os.kill(os.getpid(), signal.SIGHUP); print('alive')", preexec_fn=ignore_hangup) as process:
        assert process.communicate() == ("alive\n", "")


def ignore_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def test_a_reader_that_goes_ends_a_command_without_a_word() -> None:
    body = "[console.print('line') or sys.stdout.flush() for _ in range(10**6)]"
    with command(body) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode in (1, 128 + signal.SIGPIPE)  # as rich or this project sees it first


@pytest.mark.parametrize("kind", ["file", "below a file", "read-only"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    if kind == "read-only":
        if os.geteuid() == 0:
            pytest.skip("root may write to read-only folders")
        place.mkdir(mode=0o555)
    else:
        place.touch()
    with pytest.raises(SystemExit, match="2"):
        reporting._writable(place if kind == "file" else place / "out")
    said = capsys.readouterr().err
    assert said.startswith("error: --out: expected a folder that can be written, got ")
    assert said.count("\n") == 1
    assert reporting._writable(tmp_path / "new" / "out") == tmp_path / "new" / "out"
    assert not (tmp_path / "new").exists()


# Workers


def a_training_task(folder: Path) -> Training:
    settings = Settings("digits", "digits", folder, epochs=1, num_train=20, num_test=4)
    task = tasks_for(settings, Network.parse("ResNet8"), 0, [], loss="natural")[0]
    assert isinstance(task, Training)
    return task


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
        RuntimeError("could not create a primitive"),
    ],
)
def test_a_task_without_memory_is_one_line(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: Any) -> str:
        raise error

    monkeypatch.setattr(run, "do", greedy)
    answer = run.work(a_training_task(tmp_path), 1, np.inf, tmp_path / "stop")
    assert isinstance(answer, run.WorkerDied)
    assert str(answer).startswith("the process that was to train ResNet8")
    assert "had not enough memory: " in str(answer)
    assert "\n" not in str(answer)


def test_news_that_cannot_be_written_stop_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").touch()  # where the news of its progress belong

    def done(_: Any, report: Callable[[int, int], None]) -> str:
        report(1, 1)
        return "done"

    monkeypatch.setattr(run, "do", done)
    answer = run.work(a_training_task(tmp_path), 1, np.inf, tmp_path / "stop")
    assert isinstance(answer, tuple)
    assert answer[0] == "done"


SAMPLED: dict[str, Any] = {"num_paths": 2_000, "num_steps": 4, "rng": 0}
POINTS = [[0.1, 0.2], [0.7, 0.4]]


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MARK, str(tmp_path / "mark"))
    return tmp_path / "mark"


def test_a_killed_process_is_told_and_another_one_gives_the_same(mark: Path) -> None:
    def through(pool: ProcessPoolExecutor) -> list[float]:
        return list(in_order(pool, at, np.linspace(0, 1, 5)[:, None], range(5)))

    context = multiprocessing.get_context("spawn")
    told = pytest.raises(RuntimeError, match="executor: expected workers that live on, got one that ended")
    with ProcessPoolExecutor(1, mp_context=context) as pool, told:
        through(pool)
    assert mark.exists()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        np.testing.assert_allclose(through(pool), np.cos(2 * np.pi * np.linspace(0, 1, 5)))


@pytest.mark.slow
def test_a_killed_worker_of_dask_costs_a_sampler_nothing(mark: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    problem = ConvectionDiffusion(a_problem().velocity, deadly, 0.3)
    expected = feynman_kac(problem, POINTS, **SAMPLED)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "local_directory": tmp_path / "dask"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        found = feynman_kac(problem, POINTS, executor=client.get_executor(), **SAMPLED)
    assert mark.exists()
    np.testing.assert_array_equal(found.mean, expected.mean)


# Whole runs


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ["solve(frames_to=, checkpoint=)"],
        ["train(path=)", "SIGKILL", "disk full", "two writers"],
        ["robust_accuracy(store=)", "SIGKILL", "disk full", "two writers"],
        ["audit(store=)", "SIGKILL"],
        ["studies/table2.py", "SIGKILL", "SIGTERM"],
    ],
)
def test_random_faults_change_nothing(names: list[str]) -> None:
    script = Path(__file__).parent / "faults.py"
    done = subprocess.run([sys.executable, script, "2", "1", *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| `{names[0]}` |" in done.stdout
