"""Image files: decoding, faces, packed images, and files that a search for images ignores."""
