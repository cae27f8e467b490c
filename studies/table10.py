"""Table 10: an ensemble of two depths, with learned weights, CIFAR-100.

See table9.py: the same networks.

Without arguments: 8x8 digits and networks of depth 8, on two cores. The paper's own setting:
--dataset cifar100 --data FOLDER --preset paper --device cuda.
"""

from __future__ import annotations

from dataclasses import replace

import table9
from tables import app_for

# the paper prints no row for the controls
_ROWS = tuple(
    replace(row, paper=("table10", "none") if row.paper == ("table9", "none") else ("table5", row.model))
    if row.paper
    else row
    for row in table9.TABLE.rows
)
TABLE = replace(table9.TABLE, name="table10", rows=_ROWS)

app = app_for(TABLE)

if __name__ == "__main__":
    app()
