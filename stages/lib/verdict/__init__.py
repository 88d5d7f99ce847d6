"""Verdicts on images: the examiner, explanations, records, the command's output, the server."""
