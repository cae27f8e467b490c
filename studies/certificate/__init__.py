"""What the project promises of its own numbers: each promise, and the code that measures it."""

LEVEL = 0.05  # of verdicts and intervals, where a row does not say another
