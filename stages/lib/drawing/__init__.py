"""Drawn faces, photographs of them and their manipulations: the generated sample."""
