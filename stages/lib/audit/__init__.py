"""What a data set gives away before anyone trains on it."""
