"""Table 5: natural and robust accuracy of PGD-trained networks and their noise-injected ensembles, CIFAR-100.

Without arguments: 8x8 digits and networks of depth 8, on two cores. The paper's own setting:
--dataset cifar100 --data FOLDER --preset paper --device cuda.
"""

from __future__ import annotations

from tables import Claim, Row, Table, app_for

TABLE = Table(
    name="table5",
    caption="Natural and robust accuracy, PGD adversarially trained, white-box",
    loss="pgd",
    columns=("nat", "fgsm", "ifgsm20", "cw"),
    rows=(
        Row("ResNet20"),
        Row("En2ResNet20"),
        Row("En5ResNet20"),
        Row("ResNet44"),
        # controls: what does averaging do without noise, and what does size do without either
        Row("Plain2ResNet20"),
        Row("Plain5ResNet20"),
        Row("Wide5ResNet20"),
    ),
    claims=(
        Claim("En2ResNet20", "ResNet20"),
        Claim("En5ResNet20", "En2ResNet20"),
        Claim("En5ResNet20", "ResNet20"),
        Claim("En2ResNet20", "ResNet44"),  # an ensemble against depth
        Claim("En2ResNet20", "Plain2ResNet20"),
        Claim("En5ResNet20", "Plain5ResNet20"),
        Claim("En5ResNet20", "Wide5ResNet20"),
    ),
)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
