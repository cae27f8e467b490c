"""Noise-injected residual networks and their ensembles: train, attack, and score them as the random models they are.

model = en_resnet(depth=20, num_members=2, noise_coef=0.1)
train(model, load("cifar10", data="cifar10.npz"), PRESETS["paper"], path=Path("model.safetensors"))
x_adv = attacks.ifgsm(model, x, y, eps=8 / 255, step_size=2 / 255, num_steps=20)
score = evaluate.robust_accuracy(model, x, y, attack, num_draws=10)
print(audit(model, x, y, eps=8 / 255))

The same goes for any network and images: `inject_noise(torchvision.models.resnet18())` and `dataset("photos")`.
"""

from netkit import attacks, checkpoint, evaluate
from netkit.audit import Audit, audit
from netkit.calibration import calibration, calibration_of
from netkit.checkpoint import CheckpointError
from netkit.data import DataError, Dataset, load
from netkit.evaluate import Score
from netkit.injection import inject_input_noise, inject_noise, noise_of, remove_noise
from netkit.metrics import MetricsFile, TensorBoard
from netkit.models import EnResNet, ResNet, en_resnet, ensemble, from_name
from netkit.presets import PRESETS
from netkit.pretrained import load_pretrained, model_card, pretrained
from netkit.smoothing import Certificate, certify
from netkit.sources import dataset
from netkit.training import TrainConfig, TrainResult, load_model, load_weights, train

__all__ = [
    "PRESETS",
    "Audit",
    "Certificate",
    "CheckpointError",
    "DataError",
    "Dataset",
    "EnResNet",
    "MetricsFile",
    "ResNet",
    "Score",
    "TensorBoard",
    "TrainConfig",
    "TrainResult",
    "attacks",
    "audit",
    "calibration",
    "calibration_of",
    "certify",
    "checkpoint",
    "dataset",
    "en_resnet",
    "ensemble",
    "evaluate",
    "from_name",
    "inject_input_noise",
    "inject_noise",
    "load",
    "load_model",
    "load_pretrained",
    "load_weights",
    "model_card",
    "noise_of",
    "pretrained",
    "remove_noise",
    "train",
]
