"""From an image to its verdict (real, fake or unsure), its record, and the server with its page."""
