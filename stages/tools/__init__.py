"""Commands for people, beside the stages: run as python -m stages.tools.NAME."""
