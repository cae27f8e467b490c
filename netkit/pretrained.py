"""Trained networks that come with the package, and files like theirs of one's own.

A published network is one file: what it is built from, its weights in half precision, and facts about its training and
its accuracy, which a model card beside it says in words. `index.json` holds the SHA-256 of each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netkit import checkpoint
from netkit.checkpoint import CheckpointError
from netkit.models import EnResNet, build

FOLDER = Path(__file__).with_name("published")
_INDEX = "index.json"
_KIND = "network"


def pretrained(folder: Path = FOLDER) -> list[str]:
    """The names that `load_pretrained` knows."""
    return sorted(_digests(folder))


def load_pretrained(name: str, *, device: torch.device | str = "cpu", folder: Path = FOLDER) -> EnResNet:
    """The published network `name`, say "cifar10-En2ResNet20", in eval mode on `device`, with float32 weights.

    Images are (B, 3, 32, 32) in [0, 1]. `model_card(name)` says how it was trained, how accurate it is, and what it is
    not for. folder: where `publish` has put networks of one's own.

    Raises ValueError for another name; CheckpointError where the file is not, to the byte, the one that was published.
    """
    path = _file(name, folder)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}; install the package anew") from error
    if digest != _digests(folder)[name]:
        raise CheckpointError(f"{path} is not the file that was published: another digest; install the package anew")
    tree = checkpoint.load(path, kind=_KIND)
    with checkpoint.contents_of(path):
        model = build(tree["model"])
        model.load_state_dict(tree["weights"])
    return model.to(device).eval()


def model_card(name: str, *, folder: Path = FOLDER) -> str:
    """What is to be known about the published network `name`, in Markdown; raises ValueError for another name."""
    return _file(name, folder).with_suffix(".md").read_text(encoding="utf-8")


def rounded(model: EnResNet) -> EnResNet:
    """A copy of `model` in eval mode, with the weights that a file in half precision gives back."""
    twin = build(model.config)
    twin.load_state_dict(_in_half(model))
    return twin.eval()


def publish(name: str, model: EnResNet, facts: Mapping[str, Any], card: str, *, folder: Path) -> Path:
    """Put `model`, its weights rounded to half precision, into `folder` as `name`, and return its file.

    facts: JSON values about training and accuracy. card: what is to be known of it, in Markdown. Raises ValueError for
    a name that is no file's, and for weights that half precision cannot hold.
    """
    if not name or Path(name).name != name:
        raise ValueError(f"name: expected one such as cifar10-En2ResNet20, got {name!r}")
    path = folder / f"{name}.safetensors"
    checkpoint.save(path, {"model": model.config, "weights": _in_half(model), "facts": dict(facts)}, kind=_KIND)
    checkpoint.write_whole(path.with_suffix(".md"), [card.encode()])
    digests = _digests(folder) | {name: hashlib.sha256(path.read_bytes()).hexdigest()}
    checkpoint.write_whole(folder / _INDEX, [(json.dumps(digests, indent=1, sort_keys=True) + "\n").encode()])
    return path


def _in_half(model: EnResNet) -> dict[str, Tensor]:
    weights = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise ValueError(
                f"model: expected weights below 65,504, as half precision holds, got larger ones in {name!r}"
            )
    return weights


def _file(name: str, folder: Path) -> Path:
    if name not in (known := pretrained(folder)):
        raise ValueError(f"name: expected one of {', '.join(known) or 'none, as none is published yet'}, got {name!r}")
    return folder / f"{name}.safetensors"


def _digests(folder: Path) -> dict[str, str]:
    """By name; none where nothing has been published."""
    path = folder / _INDEX
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
