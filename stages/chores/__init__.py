"""Chores: commands for the person who keeps a clone, run as python -m stages.chores.NAME."""
