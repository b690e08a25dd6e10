"""Studies of coupled weights: each one returns data, and `figures` draws it."""
