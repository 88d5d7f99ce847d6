"""What goes to MLflow after the training: the run of a model, its files, the registry, the served
model."""
