"""Commands for users, beside the stages: run as python -m stages.tools.NAME."""
