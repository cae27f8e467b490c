"""Table 3: blind attacks. Images that attack an oracle, classified by another network, CIFAR-10.

The paper compares two networks that attack each other, so that target and oracle change together; the controls are
attacked by one and the same oracle.

Without arguments: 8x8 digits and networks of depth 8, on two cores. The paper's own setting:
--dataset cifar10 --data FILE.npz --preset paper --device cuda.
"""

from __future__ import annotations

from tables import Claim, Row, Table, app_for

TABLE = Table(
    name="table3",
    caption="Blind attacks, PGD adversarially trained",
    loss="pgd",
    columns=("fgsm", "ifgsm20", "cw"),
    rows=(
        Row("ResNet20", oracle="En5ResNet20"),
        Row("En5ResNet20", oracle="ResNet20"),
        Row("ResNet44", oracle="En2ResNet44"),
        Row("En2ResNet44", oracle="ResNet44"),
        Row("ResNet110", oracle="En2ResNet110"),
        Row("En2ResNet110", oracle="ResNet110"),
        # controls: the same oracle against members without noise, and against size alone
        Row("Plain5ResNet20", oracle="ResNet20"),
        Row("Wide5ResNet20", oracle="ResNet20"),
    ),
    claims=(
        Claim("En5ResNet20", "ResNet20"),
        Claim("En2ResNet44", "ResNet44"),
        Claim("En2ResNet110", "ResNet110"),
        Claim("En5ResNet20", "Plain5ResNet20"),
        Claim("En5ResNet20", "Wide5ResNet20"),
    ),
    smoke=("ResNet20", "En5ResNet20"),
)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
