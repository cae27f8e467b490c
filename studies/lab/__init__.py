"""What the studies do: train, attack, record, and assemble tables; it knows no paper but through what it is handed."""
