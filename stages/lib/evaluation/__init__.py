"""From scores to metrics, tables and verdicts; begin to read in report.py."""
