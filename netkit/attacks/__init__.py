"""White-box attacks on classifiers of images in [0, 1] (Sec. 3.2), and expectation over transformation (Sec. 4).

Every attack is called as `attack(model, x, y, *, ...)` with images x (B, C, H, W), floating point and within [0, 1],
and labels y (B,), int64; it returns x_adv, of x's shape and dtype, within [0, 1] and without gradient. The model maps
images to logits (B, num_classes). Its parameters collect no gradients, and its modules' modes come back as they were.
Wrong input raises ValueError.

Sign and L2 attacks are one ascent of the loss: FGSM is IFGSM with one step of length eps, and PGD is IFGSM from a
random start. The three Carlini-Wagner attacks are one descent with Adam. AutoAttack is its authors' own, where the
library is installed.

A noisy model is attacked through `ExpectationOverTransformation`, which all of them accept in place of a model; through
its deterministic views, `noise_free` and `frozen_noise`; and by `arc`, draw by draw.
"""

from netkit.attacks.ascent import Loss, Norm, StepSize, cross_entropy, fgsm, ifgsm, margin, pgd
from netkit.attacks.auto import AutoAttackPart, AutoAttackVersion, auto_attack
from netkit.attacks.carlini_wagner import CWVariant, cw
from netkit.attacks.expectation import BatchNormMode, ExpectationOverTransformation, NotFiniteError
from netkit.attacks.randomized import arc
from netkit.attacks.surrogates import frozen_noise, noise_free

__all__ = [
    "AutoAttackPart",
    "AutoAttackVersion",
    "BatchNormMode",
    "CWVariant",
    "ExpectationOverTransformation",
    "Loss",
    "Norm",
    "NotFiniteError",
    "StepSize",
    "arc",
    "auto_attack",
    "cross_entropy",
    "cw",
    "fgsm",
    "frozen_noise",
    "ifgsm",
    "margin",
    "noise_free",
    "pgd",
]
