"""Verdicts on images and videos: the examiner, explanations, records, the command's output, the server."""
