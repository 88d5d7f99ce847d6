"""The server of verdicts: the JSON interface, the page, and what they are made of."""
