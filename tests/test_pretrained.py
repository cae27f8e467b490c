"""Published networks: what is loaded is what was published, and nothing else passes for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from netkit import checkpoint, en_resnet, load_pretrained, model_card, pretrained
from netkit.checkpoint import CheckpointError
from netkit.models import EnResNet
from netkit.pretrained import FOLDER, publish, rounded

LARGEST = 1.2e6  # bytes


def network(seed: int = 0) -> EnResNet:
    """With statistics in batch norm that are not those of a new network."""
    model = en_resnet(8, num_members=2, in_channels=1, width=4, seed=seed)
    model(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed)))
    return model.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    publish("small", network(), {"n": 1}, "# small\n", folder=tmp_path)
    return tmp_path


def test_a_network_comes_back_rounded_to_half_precision(folder: Path) -> None:
    x, model, found = torch.rand(5, 1, 8, 8), network(), load_pretrained("small", folder=folder)
    assert not found.training
    assert {weight.dtype for weight in found.parameters()} == {torch.float32}
    for name, weight in found.state_dict().items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=2**-11, atol=2**-25)
    with torch.no_grad(), found.fixed_noise(3), model.fixed_noise(3):
        answer, near = found(x), model(x)
        twin = rounded(model)
        with twin.fixed_noise(3):
            assert torch.equal(answer, twin(x))
        assert not torch.equal(answer, near)
        torch.testing.assert_close(answer, near, rtol=0.02, atol=0.02)
    assert model_card("small", folder=folder) == "# small\n"


def test_publishing_again_replaces_and_keeps_the_others(folder: Path) -> None:
    publish("other", network(1), {}, "", folder=folder)
    publish("small", network(2), {}, "", folder=folder)
    assert pretrained(folder) == ["other", "small"]
    assert torch.equal(
        load_pretrained("small", folder=folder).state_dict()["members.0.stem.weight"],
        rounded(network(2)).state_dict()["members.0.stem.weight"],
    )


def test_another_file_under_its_name_is_refused(folder: Path) -> None:
    path = folder / "small.safetensors"
    checkpoint.save(path, checkpoint.load(path, kind="network") | {"facts": {"n": 2}}, kind="network")
    with pytest.raises(CheckpointError, match="is not the file that was published"):
        load_pretrained("small", folder=folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read.*install the package anew"):
        load_pretrained("small", folder=folder)


@pytest.mark.parametrize("name", ["", "../small", "a/b"])
def test_a_name_is_a_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name: expected one such as"):
        publish(name, network(), {}, "", folder=tmp_path)


def test_an_unknown_name_is_answered_with_the_known(folder: Path) -> None:
    for call in (load_pretrained, model_card):
        with pytest.raises(ValueError, match=r"name: expected one of small, got '\.\./small'"):
            call("../small", folder=folder)


def test_weights_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    model = network()
    with torch.no_grad():
        next(model.parameters()).fill_(1e5)
    with pytest.raises(ValueError, match="expected weights below 65,504"):
        publish("large", model, {}, "", folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_network_of_the_package_is_whole() -> None:
    assert {path.stem for path in FOLDER.glob("*.safetensors")} == set(pretrained())
    for name in pretrained():
        assert (FOLDER / f"{name}.safetensors").stat().st_size < LARGEST
        card = model_card(name)
        assert all(f"**{part}" in card for part in ("Data.", "Recipe.", "Licence.", "Not for"))
        with torch.no_grad():
            logits = load_pretrained(name)(torch.rand(2, 3, 32, 32))
        assert logits.isfinite().all()
