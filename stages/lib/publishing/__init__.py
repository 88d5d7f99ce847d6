"""Publishing to MLflow after the training: the run of a model, the served model, the registry."""
