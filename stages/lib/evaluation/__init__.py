"""From scores to metrics, intervals and curves."""
