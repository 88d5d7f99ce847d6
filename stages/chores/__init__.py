"""Chores around the pipeline: experiments, presets, DVC's cache, MLflow's store."""
