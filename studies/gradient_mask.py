"""Section 4.4: is it masked gradients, and would a plain ensemble do? CIFAR-10.

Naturally trained noisy ensembles under IFGSM: if noise only hid the gradient, they would look robust. And ensembles of
PGD-trained networks without noise, trained together or apart, beside the noisy one.

Without arguments: 8x8 digits and networks of depth 8, on two cores. The paper's own setting:
--dataset cifar10 --data FILE.npz --preset paper --device cuda.
"""

from __future__ import annotations

from tables import Claim, Row, Table, app_for

TABLE = Table(
    name="section4_4",
    caption="Gradient masking, and ensembles without noise",
    loss="pgd",
    columns=("nat", "fgsm", "ifgsm20", "cw"),
    rows=(
        Row("En1ResNet20", loss="natural"),
        Row("En2ResNet20", loss="natural"),
        Row("En5ResNet20", loss="natural"),
        Row("ResNet20", paper=("table2", "ResNet20")),
        Row("Plain2ResNet20", paper=("section4_4", "2xResNet20 no noise, joint")),
        Row("ResNet20+ResNet20", paper=("section4_4", "2xResNet20 no noise, separate")),
        Row("ResNet20+ResNet44", paper=("section4_4", "ResNet20+ResNet44 no noise, separate")),
        Row("En1ResNet20", paper=("table2", "En1ResNet20")),
        Row("En2ResNet20", paper=("table2", "En2ResNet20")),
        Row("En5ResNet20", paper=("table2", "En5ResNet20")),
    ),
    claims=(
        # noise alone does not defend: adversarial training does
        Claim("En1ResNet20", "En1ResNet20 (natural)", columns=("ifgsm20",)),
        Claim("En2ResNet20", "En2ResNet20 (natural)", columns=("ifgsm20",)),
        Claim("En5ResNet20", "En5ResNet20 (natural)", columns=("ifgsm20",)),
        # averaging without noise helps little
        Claim("Plain2ResNet20", "ResNet20"),
        Claim("ResNet20+ResNet20", "ResNet20"),
        Claim("En2ResNet20", "Plain2ResNet20"),
        Claim("En2ResNet20", "ResNet20+ResNet20"),
        Claim("En2ResNet20", "ResNet20+ResNet44"),
    ),
    smoke=("En1ResNet20 (natural)", "En1ResNet20", "ResNet20+ResNet20"),
)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
