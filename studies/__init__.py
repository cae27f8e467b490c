"""The paper: its figures, tables and claims, declared, computed and drawn."""
