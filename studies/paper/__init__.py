"""What the paper says, declared as data."""
