"""Verdicts on images and videos: examiner, explanations, records, printing, the server."""
