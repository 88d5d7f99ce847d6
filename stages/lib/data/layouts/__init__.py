"""What a data set on disk says of each image: one module for each layout."""
