"""What only some stages need of image files: decoding, faces, packed images, files to ignore."""
