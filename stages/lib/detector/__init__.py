"""The detector, its input and the hardware that it runs on."""
