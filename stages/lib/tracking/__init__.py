"""MLflow runs: the store, the identity of a run, and writing to it."""
