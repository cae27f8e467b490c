"""The paper, declared as data: rows, attacks, claims, printed numbers, and the queue of its reproduction."""
