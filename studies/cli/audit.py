"""`itoflow audit model.py:make --data FILE`: attack a user's network in all ways that fit it, and say what to trust."""

from __future__ import annotations

import argparse
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from netkit import audit, dataset, load_weights
from netkit.checkpoint import CheckpointError
from netkit.data import DataError, read_arrays
from studies.cli import CommandError
from studies.cli.targets import called, number, target


def main(words: Sequence[str]) -> int:
    """Print the table; return 0 where its verdict names a number to trust, 1 where it says not to trust any."""
    options = _parser().parse_args(words)
    model = _network(options.model)
    try:
        if options.weights is not None:
            model = with_weights(model, options.weights)
        x, y = images(options.data, options.size, options.num_images)
        told = {name: getattr(options, name) for name in ("eps", "norm", "budget", "num_draws", "batch_size", "seed")}
        device = torch.device(options.device)
        report = audit(model.eval().to(device), x.to(device), y.to(device), store=options.store, **told)
    except (DataError, CheckpointError, ValueError, RuntimeError, OSError) as error:
        raise CommandError(" ".join(str(error).split()) or type(error).__name__) from error
    print(report)
    if options.json is not None:
        options.json.write_text(json.dumps(report.summary(), indent=1) + "\n", encoding="utf-8")
    return 0 if report.is_trusted else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="itoflow audit",
        description="Attack a network of your own in all ways that fit it, and say which accuracy to trust.",
        epilog="Exit codes: 0 there is a number to trust, 1 there is none, 2 an error.",
    )
    parser.add_argument("model", help="FILE.py:NAME or MODULE:NAME; a network, or a function that makes one (make)")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help=".npz with x_test and y_test, or x and y; or a folder of class folders, whose test images are taken",
    )
    parser.add_argument("--weights", type=Path, help="a checkpoint of netkit, .safetensors, or a state_dict of tensors")
    parser.add_argument("--eps", type=number, default=8 / 255, help="size of the attacks, as 0.1 or 8/255 (usual)")
    parser.add_argument("--norm", default="linf", help="linf or l2")
    parser.add_argument("--budget", default="standard", help="quick, standard or full")
    parser.add_argument("--num-images", type=int, default=200, help="the first so many (200)")
    parser.add_argument("--size", type=int, help="height and width to which the images of a folder are brought")
    parser.add_argument("--num-draws", type=int, default=10, help="answers of a random network for each image (10)")
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn at random (0)")
    parser.add_argument("--device", default="cpu", help="cpu (usual), cuda or cuda:1")
    parser.add_argument("--store", type=Path, help="folder that keeps what is done, for the same command to go on")
    parser.add_argument("--json", type=Path, help="file for all numbers and sentences")
    return parser


def _network(text: str) -> nn.Module:
    made = target(text, "make")
    if not isinstance(made, nn.Module) and callable(made):
        made = called(text, made)
    if not isinstance(made, nn.Module):
        raise CommandError(
            f"{text}: expected a torch.nn.Module or a function that makes one, got {type(made).__name__}"
        )
    return made


def images(data: Path, size: int | None, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` test images (N, C, H, W) in [0, 1], and labels; errors as `netkit.dataset`."""
    if count < 1:
        raise CommandError(f"--num-images: expected at least 1, got {count}")
    source: Any = data
    if data.suffix == ".npz":
        arrays = read_arrays(data, (), optional=("x_test", "y_test", "x", "y"))
        names = next((pair for pair in (("x_test", "y_test"), ("x", "y")) if arrays.keys() >= {*pair}), None)
        if names is None:
            raise CommandError(f"{data}: expected x_test and y_test, or x and y, got {', '.join(arrays) or 'neither'}")
        pair = (arrays[names[0]], arrays[names[1]])
        source = {"train": pair, "val": pair, "test": pair}
    made = dataset(source, size=size)
    return made.images(made.test.x[:count]), made.test.y[:count]


def with_weights(model: nn.Module, path: Path) -> nn.Module:
    """The model with weights from a file, of which nothing is executed.

    Raises CommandError for a file that is no checkpoint and holds no tensors by their names, or those of another model.
    """
    if not path.is_file():
        raise CommandError(f"--weights: no such file: {path}")
    if path.suffix == ".safetensors":
        try:
            found: Any = safetensors.torch.load_file(path)
        except Exception as error:
            raise CommandError(f"{path} is damaged, or not a safetensors file: {error}") from error
        with safetensors.safe_open(path, "pt") as file:
            if "itoflow" in (file.metadata() or {}):
                return load_weights(path, model)
    else:
        if _is_compressed(path):
            raise CommandError(f"{path}: expected tensors as torch.save writes them, got compressed ones, of any size")
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged archive makes pickle raise nearly anything
            cure = "save model.state_dict(), which holds tensors alone"
            raise CommandError(
                f"{path} holds more than tensors, which could run code, or is damaged: {cure}"
            ) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()
    ):
        raise CommandError(f"{path}: expected a state_dict, tensors by their names, got {type(found).__name__}")
    model.load_state_dict(dict(found))
    return model


def _is_compressed(path: Path) -> bool:
    """Whether it is an archive with any member that takes more memory than it has bytes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())
    except zipfile.BadZipFile:  # torch's older format, or damaged
        return False
