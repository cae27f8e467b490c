"""Break real work at random moments, continue it, and see that it ends as if nothing had happened.

    python tests/faults.py [TRIES] [SEED] [NAME ...]

makes TRIES tries (default 8) of each fault on each kind of work, or of those that are named, and prints the table in
docs/faults.md, a line for each pair: what the user saw, and what was lost of that which was on disk. It ends with an
error where anything was lost, or where the work ends otherwise than without the fault.

Work runs in forks of one process that has imported everything and computed nothing, so that a try costs no time.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pty
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from made_up_records import less_where_and_when

from netkit import attacks, audit, checkpoint, data, en_resnet
from netkit.evaluate import robust_accuracy, through_eot
from netkit.training import TrainConfig, train
from pdekit import ConvectionDiffusion, solve
from studies.lab import records
from studies.table2 import app

LONGEST = 600.0
"""Seconds after which a try counts as hung."""


# Work: what is done in a folder, how far it has come, and what comes out


@dataclass(frozen=True)
class Work:
    """do: it, or what is left of it; done: how much of it is on disk; outcome: what must come out, to the last bit."""

    name: str
    do: Callable[[Path], None]
    done: Callable[[Path], float]
    outcome: Callable[[Path], Any]


def solving(path: Path) -> None:
    rng = np.random.default_rng(0)
    problem = ConvectionDiffusion(rng.uniform(-0.5, 0.5, (2, 8, 8)), rng.uniform(-1, 1, (8, 8)), 0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a grid this small
        times = np.linspace(0, 1, 81)
        files: dict[str, Any] = {"checkpoint": path / "c.npz", "checkpoint_seconds": 0, "frames_to": path / "u.nc"}
        solve(problem, num_points=32, dt=1 / 160, method="spectral_rk4", times=times, **files).close()


def frames_done(path: Path) -> float:
    if (path / "u.nc").exists():
        return 81
    if not (path / "c.npz").exists():
        return 0
    with np.load(path / "c.npz") as stored:
        return len(stored["frames_on_disk"])


def solution(path: Path) -> Any:
    with xr.open_dataset(path / "u.nc", engine="h5netcdf") as stored:
        return stored.u.values


def training(path: Path) -> None:
    digits = data.load("digits", num_train=128)
    config = TrainConfig(epochs=4, batch_size=29, eps=0.2, step_size=0.1, num_steps=2, seed=3)
    model = en_resnet(8, num_members=2, in_channels=1, width=4, seed=0)
    train(model, digits, config, path=path / "run", checkpoint_steps=1)


def updates_done(path: Path) -> float:
    if not (path / "run").exists():
        return 0
    tree = checkpoint.load(path / "run", kind="training")
    return float(tree["epoch"] * 4 + tree["step"])


def trained(path: Path) -> Any:
    """A finished run less the seconds it took."""
    tree = checkpoint.load(path / "run", kind="training")
    history = [{**record, "seconds": 0.0} for record in tree["history"]]
    return {**tree, "history": history, "seconds": 0.0, "provenance": {}}


def evaluating(path: Path) -> None:
    digits = data.load("digits", num_test=60)
    ifgsm = partial(attacks.ifgsm, eps=0.2, step_size=0.05, num_steps=5)
    attack = partial(through_eot, attack=ifgsm, eot_draws=3)
    model = en_resnet(8, num_members=2, in_channels=1, width=4, seed=0)
    x, y = digits.images(digits.test.x), digits.test.y
    robust_accuracy(model, x, y, attack, num_draws=5, batch_size=5, seed=3, store=path / "scores")


def blocks_done(path: Path) -> float:
    found = [file for file in path.rglob("*") if file.is_file() and file.suffix != ".tmp"]
    return sum(len(checkpoint.load(file, kind="evaluation")["blocks"]) for file in found)


def predictions(path: Path) -> Any:
    found = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): {**checkpoint.load(file, kind="evaluation"), "seconds": 0.0} for file in found}


def auditing(path: Path) -> None:
    digits = data.load("digits", num_test=12)
    model = en_resnet(8, num_members=2, in_channels=1, width=4, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, y = digits.images(digits.test.x), digits.test.y
        audit(model, x, y, eps=0.1, budget="quick", num_draws=2, batch_size=6, store=path)


def tabulating(path: Path) -> None:
    small = [
        "--num-train",
        "64",
        "--num-test",
        "20",
        "--columns",
        "nat,fgsm",
        "--workers",
        "1",
        "--device",
        "cpu",
        "--smoke",
    ]
    app([*small, "--out", str(path), "--results", str(path / "results")])


def records_done(path: Path) -> float:
    return len(list(path.glob("*/*.json")))


def table(path: Path) -> Any:
    stored = records.read(path / "results")
    return less_where_and_when(stored.scores), [line["weights"] for line in stored.trainings]


WORKS = (
    Work("solve(frames_to=, checkpoint=)", solving, frames_done, solution),
    Work("train(path=)", training, updates_done, trained),
    Work("robust_accuracy(store=)", evaluating, blocks_done, predictions),
    Work("audit(store=)", auditing, blocks_done, predictions),
    Work("studies/table2.py", tabulating, records_done, table),
)


def are_equal(first: Any, second: Any) -> bool:
    """Equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(are_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(are_equal, first, second))
    return bool(first == second)


# Processes


@dataclass
class Child:
    """Work in a fork, with what it prints in a file."""

    pid: int
    printed: Path
    status: int | None = None

    def is_running(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = status if pid else None
        return self.status is None

    def ended(self) -> int:
        """Its exit status, or minus the signal that killed it; a hung one is killed and counts as an error."""
        end = time.monotonic() + LONGEST
        while self.is_running() and time.monotonic() < end:
            time.sleep(0.002)
        if self.is_running():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise RuntimeError(f"hung: {self.said()}")
        return os.waitstatus_to_exitcode(self.status or 0)

    def said(self) -> str:
        """The last line that it left on standard error, less what differs from try to try."""
        lines = self.printed.read_text(errors="replace").strip().splitlines()
        line = lines[-1] if lines else ""
        line = re.sub(r"/\S*/(?=[\w.*-]+)", "", re.sub(r"\.\d+\.(tmp|partial)", r".\1", line))
        return re.sub(r"\d{3,}", "N", re.sub(r"-[0-9a-f]{10}\b", "", line)) or "nothing"


def start(work: Work, path: Path, before: Callable[[], None] = lambda: None, *, keeps_output: bool = False) -> Child:
    """`work` in a fork, after `before()`, which breaks something there."""
    sys.stdout.flush()
    path.mkdir(exist_ok=True)
    printed = path.with_name(f"{path.name}.{random.getrandbits(32):08x}.txt")
    printed.touch()
    child = os.fork()
    if child:
        return Child(child, printed)
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with printed.open("w") as file:
            os.dup2(file.fileno(), 2)
            if not keeps_output:
                os.dup2(file.fileno(), 1)
        before()
        work.do(path)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(2, "".join(traceback.format_exception_only(error)).encode())
    os._exit(code)


# Faults: each is tried on a folder, says what the user saw, and leaves the folder to be continued


@dataclass
class Try:
    """One of them: `seconds` that the work takes from its first file on, and the bytes of its largest file."""

    work: Work
    path: Path
    rng: random.Random
    seconds: float
    largest: int
    tries: int
    seen: Counter[str] = field(default_factory=Counter)

    def moment(self) -> float:
        """Within a share of the work: what was done is not done again, and most tries are to hit."""
        return self.rng.uniform(0, 2.5) * self.seconds / self.tries

    def wait_for_it(self, child: Child) -> None:
        """Until the moment, from when it first writes on."""
        before, end = newest(self.path), time.monotonic() + LONGEST
        if self.rng.random() < 0.8:  # else while it starts or reads
            while child.is_running() and newest(self.path) == before and time.monotonic() < end:
                time.sleep(0.001)
        end = time.monotonic() + self.moment()
        while child.is_running() and time.monotonic() < end:
            time.sleep(0.001)


def newest(path: Path) -> int:
    found = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):
            found = max(found, file.stat().st_mtime_ns)
    return found


def signalled(trial: Try, number: signal.Signals) -> Child:
    child = start(trial.work, trial.path)
    trial.wait_for_it(child)
    if child.is_running():
        os.kill(child.pid, number)
    return child


def disk_full(trial: Try) -> Child:
    """No file may grow beyond a random size: as a full disk or a quota, for which no one needs to be root."""

    def limit() -> None:
        most = trial.rng.randrange(trial.largest)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

    trial.rng.random()
    return start(trial.work, trial.path, limit)


def read_only(trial: Try) -> Child:
    """The folder takes no files; root, who may write anywhere, becomes nobody for it."""

    def become_nobody() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)

    folders = [trial.path, *(path for path in trial.path.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        child = start(trial.work, trial.path, become_nobody)
        child.ended()
    finally:
        for folder in folders:
            folder.chmod(0o755)
    return child


def two_writers(trial: Try) -> Child:
    """Another process does the same in the same folder at the same time."""
    others = [start(trial.work, trial.path), start(trial.work, trial.path)]
    failed = [child for child in others if child.ended() != 0]
    return (failed or others)[0]


def lack_of_memory(trial: Try) -> Child:
    """Some MiB more than the process has, and no more; libraries beneath may crash then."""

    def limit() -> None:
        now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = now + (trial.rng.randrange(2, 40) << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))

    trial.rng.random()
    return start(trial.work, trial.path, limit)


def clock_jumps(trial: Try) -> Child:
    """The wall clock goes back and forth by hours between any two looks at it."""
    true = time.time

    def jump() -> None:
        time.time = lambda: true() + trial.rng.uniform(-1e5, 1e5)

    return start(trial.work, trial.path, jump)


def full_pipe(trial: Try) -> Child:
    """As `| head`: who reads its output goes at a random moment."""
    reading, writing = os.pipe()

    def connect() -> None:
        os.close(reading)
        os.dup2(writing, 1)

    child = start(trial.work, trial.path, connect)
    os.close(writing)
    trial.wait_for_it(child)
    os.close(reading)
    return child


def terminal_gone(trial: Try) -> Child:
    """Its terminal is closed at a random moment, with or without the signal that tells of it."""
    ours, theirs = pty.openpty()
    is_told = trial.rng.random() < 0.5

    def connect() -> None:
        os.close(ours)
        os.dup2(theirs, 1)
        os.dup2(theirs, 2)
        if not is_told:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    child = start(trial.work, trial.path, connect)
    os.close(theirs)
    trial.wait_for_it(child)
    os.close(ours)
    if is_told and child.is_running():
        os.kill(child.pid, signal.SIGHUP)
    return child


FAULTS: dict[str, Callable[[Try], Child]] = {
    "SIGKILL": partial(signalled, number=signal.SIGKILL),
    "SIGTERM": partial(signalled, number=signal.SIGTERM),
    "Ctrl-C": partial(signalled, number=signal.SIGINT),
    "disk full": disk_full,
    "read-only folder": read_only,
    "two writers": two_writers,
    "out of memory": lack_of_memory,
    "clock jumps": clock_jumps,
    "reader gone (head)": full_pipe,
    "terminal gone": terminal_gone,
}


@dataclass(frozen=True)
class Line:
    """Of the table."""

    work: str
    fault: str
    tries: int
    hits: int
    seen: Counter[str]


def survive(work: Work, fault: str, whole: Path, seconds: float, *, tries: int, rng: random.Random) -> Line:
    """Raises RuntimeError where the work does not continue, loses something finished or ends otherwise."""
    path = whole.with_name("broken")
    path.mkdir()
    path.chmod(0o777)
    largest = max(file.stat().st_size for file in whole.rglob("*") if file.is_file())
    trial = Try(work, path, rng, seconds, largest, tries)
    what, hits, before = f"{work.name}, {fault}", 0, 0.0
    for number in range(tries):
        if work.done(path) >= work.done(whole):  # all is done: begin anew
            clear(path)
            before = 0.0
        child = FAULTS[fault](trial)
        code = child.ended()
        hits += code != 0
        said = "the end of the work" if code == 0 else child.said() if code > 0 else signal.Signals(-code).name
        if code < 0 and said not in ("SIGKILL", "SIGTERM", "SIGHUP") and FAULTS[fault] is not lack_of_memory:
            raise RuntimeError(f"{what}: crashed with {said}")
        trial.seen[said] += 1
        now = work.done(path)  # refuses what is damaged
        if now < before:
            raise RuntimeError(f"{what}: try {number} took back {before} to {now}")
        before = now
    child = start(work, path)
    if child.ended() != 0:
        raise RuntimeError(f"{what}: does not continue: {child.said()}")
    if not are_equal(work.outcome(path), work.outcome(whole)):
        raise RuntimeError(f"{what}: ended otherwise than undisturbed")
    if left := [file.name for file in path.rglob("*") if file.suffix in (".tmp", ".partial", ".progress")]:
        raise RuntimeError(f"{what}: left behind {', '.join(left)}")
    shutil.rmtree(path)
    for file in path.parent.glob("broken.*.txt"):
        file.unlink()
    return Line(work.name, fault, tries, hits, trial.seen)


def clear(path: Path) -> None:
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def noting_modules(do: Callable[[Path], None], path: Path) -> None:
    try:
        do(path)
    finally:  # commands end with SystemExit
        path.with_name("modules").write_text("\n".join(sys.modules))


def import_noted(path: Path) -> None:
    """What is imported late, before faults: a lack of memory, or of rights, would strike there."""
    for name in path.with_name("modules").read_text().split():
        if name not in sys.modules and not name.startswith("_"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def lines(tries: int, seed: int, names: tuple[str, ...]) -> Iterator[Line]:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    faults = [fault for fault in FAULTS if fault in names] or list(FAULTS)
    for work in [work for work in WORKS if work.name in names] or WORKS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            folder.chmod(0o755)
            whole = folder / "whole"
            child = start(replace(work, do=partial(noting_modules, work.do)), whole)
            before = newest(whole)
            while child.is_running() and newest(whole) == before:
                time.sleep(0.001)
            began = time.monotonic()
            if child.ended() != 0:
                raise RuntimeError(f"{work.name}: the undisturbed run failed: {child.said()}")
            seconds = time.monotonic() - began
            import_noted(whole)
            for fault in faults:
                yield survive(work, fault, whole, seconds, tries=tries, rng=rng)


def main(tries: int = 8, seed: int = 0, *names: str) -> None:
    sys.stdout.write("| work | fault | tries | hit | the user saw (times) | lost |\n|---|---|---|---|---|---|\n")
    for line in lines(tries, seed, names):
        seen = "; ".join(f"{said.replace('|', '/')} ({count})" for said, count in line.seen.most_common())
        sys.stdout.write(f"| `{line.work}` | {line.fault} | {line.tries} | {line.hits} | {seen} | 0 |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(*map(int, arguments[:2]), *arguments[2:])
