"""Training and evaluation are killed with SIGKILL at random moments, continued, and end as if nothing had happened.

    python tests/test_kills.py [KILLS] [SEED]

says where each of KILLS kills (default 20) of each kind hit. The work runs in forks of one process that has imported
everything and computed nothing, so that a kill costs no time.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from netkit import attacks, checkpoint, data, en_resnet
from netkit.evaluate import robust_accuracy, through_eot
from netkit.training import TrainConfig, train

STEPS_PER_EPOCH = 8


def training(num_kills: int) -> Callable[[Path], None]:
    """Work for long enough that most of the kills interrupt it."""
    digits = data.load("digits", num_train=256)
    config = TrainConfig(epochs=2 + num_kills // 2, batch_size=29, eps=0.2, step_size=0.1, num_steps=3, seed=3)

    def work(path: Path) -> None:
        model = en_resnet(8, num_members=2, in_channels=1, width=4, seed=0)
        train(model, digits, config, path=path, checkpoint_steps=1)

    return work


def evaluation(num_kills: int) -> Callable[[Path], None]:
    digits = data.load("digits", num_test=15 * num_kills)
    x, y = digits.images(digits.test.x), digits.test.y
    ifgsm = partial(attacks.ifgsm, eps=0.2, step_size=0.05, num_steps=10)
    attack = partial(through_eot, attack=ifgsm, eot_draws=3)

    def work(path: Path) -> None:
        model = en_resnet(8, num_members=2, in_channels=1, width=4, seed=0)
        robust_accuracy(model, x, y, attack, num_draws=5, batch_size=5, seed=3, store=path)

    return work


def updates_done(tree: dict[str, Any]) -> int:
    done: int = tree["epoch"] * STEPS_PER_EPOCH + tree["step"]
    return done


def blocks_done(tree: dict[str, Any]) -> int:
    return len(tree["blocks"])


def without_clock(tree: dict[str, Any]) -> dict[str, Any]:
    """A finished run less the seconds it took."""
    history = [{**record, "seconds": 0.0} for record in tree.get("history", [])]
    return {**tree, "history": history, "seconds": 0.0, "provenance": {}}


def are_equal(first: Any, second: Any) -> bool:
    """Equal to the last bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(are_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(are_equal, first, second))
    return bool(first == second)


def wait_for_change(path: Path, *, at_most: float) -> None:
    """Until `path` is written or replaced, or that many seconds have passed."""
    end = time.monotonic() + at_most
    before = path.stat().st_mtime_ns if path.exists() else None
    while time.monotonic() < end and (path.stat().st_mtime_ns if path.exists() else None) == before:
        time.sleep(0.001)


def say(line: str) -> None:
    sys.stdout.write(line + "\n")


def start(work: Callable[[Path], None], path: Path) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        work(path)
        os._exit(0)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    os._exit(1)


def survive(
    kind: str,
    work: Callable[[Path], None],
    done: Callable[[dict[str, Any]], int],
    *,
    num_kills: int,
    rng: random.Random,
    folder: Path,
) -> None:
    """Raises RuntimeError where a run does not continue, loses something finished or ends otherwise."""
    whole, killed = folder / f"{kind}-whole.safetensors", folder / f"{kind}-killed.safetensors"
    started = time.monotonic()
    child = start(work, whole)
    wait_for_change(whole, at_most=60)
    until_first = time.monotonic() - started
    if os.waitpid(child, 0)[1]:
        raise RuntimeError(f"{kind}: the uninterrupted run failed")
    seconds = time.monotonic() - started - until_first
    expected = checkpoint.load(whole, kind=kind)
    positions = [0]
    for number in range(num_kills):
        child = start(work, killed)
        if rng.random() < 0.2:  # while it starts or reads
            time.sleep(rng.uniform(0, 0.5) * until_first)
        else:
            wait_for_change(killed, at_most=until_first)
            time.sleep(rng.uniform(0, 1.6) * seconds / num_kills)
        os.kill(child, signal.SIGKILL)  # a finished child is still there to be waited for
        status = os.waitpid(child, 0)[1]
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            raise RuntimeError(f"{kind}: the run did not continue after kill {number}")
        hit = os.WIFSIGNALED(status)
        position = done(checkpoint.load(killed, kind=kind)) if killed.exists() else 0  # refuses what is damaged
        say(f"{kind}: kill {number + 1} {'hit' if hit else 'came late'} at {position} of {done(expected)}")
        if position < positions[-1]:
            raise RuntimeError(f"{kind}: kill {number + 1} took back {positions[-1]} to {position}")
        positions.append(position)
    if os.waitpid(start(work, killed), 0)[1]:
        raise RuntimeError(f"{kind}: the run did not continue to its end")
    if not are_equal(without_clock(checkpoint.load(killed, kind=kind)), without_clock(expected)):
        raise RuntimeError(f"{kind}: the killed run ended otherwise than the uninterrupted one")
    left = [path.name for path in folder.glob(f"*{killed.name}*") if path != killed]
    if left:
        raise RuntimeError(f"{kind}: left behind {', '.join(left)}")
    say(f"{kind}: {num_kills} kills, identical end")


def main(num_kills: int = 20, seed: int = 0) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        options: dict[str, Any] = {"num_kills": num_kills, "rng": rng, "folder": Path(name)}
        survive("training", training(num_kills), updates_done, **options)
        survive("evaluation", evaluation(num_kills), blocks_done, **options)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")
def test_random_kills_change_nothing() -> None:
    done = subprocess.run([sys.executable, __file__, "3", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training: 3 kills, identical end" in done.stdout
    assert "evaluation: 3 kills, identical end" in done.stdout
    assert " hit at " in done.stdout


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
