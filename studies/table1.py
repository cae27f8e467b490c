"""Table 1: natural accuracy of naturally trained networks and their noise-injected ensembles, CIFAR-10.

Without arguments: 8x8 digits and networks of depth 8, on two cores. The paper's own setting:
--dataset cifar10 --data FILE.npz --preset paper --device cuda.
"""

from __future__ import annotations

from tables import Claim, Row, Table, app_for

TABLE = Table(
    name="table1",
    caption="Natural accuracy, naturally trained",
    loss="natural",
    columns=("nat",),
    rows=(
        Row("ResNet20"),
        Row("En1ResNet20"),
        Row("En2ResNet20"),
        Row("En5ResNet20"),
        Row("ResNet44"),
        Row("En1ResNet44"),
        Row("En2ResNet44"),
        Row("ResNet110"),
        Row("En2ResNet110"),
        # controls: what does averaging do without noise, and what does size do without either
        Row("Plain2ResNet20"),
        Row("Plain5ResNet20"),
        Row("Wide5ResNet20"),
    ),
    claims=(
        Claim("En1ResNet20", "ResNet20"),
        Claim("En2ResNet20", "En1ResNet20"),
        Claim("En5ResNet20", "En2ResNet20"),
        Claim("En2ResNet20", "ResNet20"),
        Claim("En5ResNet20", "ResNet20"),
        Claim("En1ResNet44", "ResNet44"),
        Claim("En2ResNet44", "En1ResNet44"),
        Claim("En2ResNet110", "ResNet110"),  # the text says so of all three depths; the numbers of this one do not
        Claim("En2ResNet20", "Plain2ResNet20"),
        Claim("En5ResNet20", "Plain5ResNet20"),
        Claim("En5ResNet20", "Wide5ResNet20"),
    ),
)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
