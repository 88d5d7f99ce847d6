"""Score files of any detector: read, matched with labels, mapped to logits, judged, compared."""
