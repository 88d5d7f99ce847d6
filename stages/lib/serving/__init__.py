"""The model that MLflow serves."""
