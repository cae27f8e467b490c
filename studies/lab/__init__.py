"""Train, attack, record, and assemble tables, for any declared paper."""
