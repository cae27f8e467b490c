"""Table 6: blind attacks. Images that attack an oracle, classified by another network, CIFAR-100.

Without arguments: 8x8 digits and networks of depth 8, on two cores. The paper's own setting:
--dataset cifar100 --data FOLDER --preset paper --device cuda.
"""

from __future__ import annotations

from tables import Claim, Row, Table, app_for

TABLE = Table(
    name="table6",
    caption="Blind attacks, PGD adversarially trained",
    loss="pgd",
    columns=("fgsm", "ifgsm20", "cw"),
    rows=(
        Row("ResNet20", oracle="En2ResNet20"),
        Row("En2ResNet20", oracle="ResNet20"),
        # controls: the same oracle against members without noise, and against size alone
        Row("Plain2ResNet20", oracle="ResNet20"),
        Row("Wide2ResNet20", oracle="ResNet20"),
    ),
    claims=(
        Claim("En2ResNet20", "ResNet20"),
        Claim("En2ResNet20", "Plain2ResNet20"),
        Claim("En2ResNet20", "Wide2ResNet20"),
    ),
)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
