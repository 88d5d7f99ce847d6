"""What happens to images before they are scored: views and perturbations."""
