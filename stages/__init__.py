"""The pipeline's stages, one module each: `python -m stages.NAME` (see dvc.yaml)."""
