"""What happens to images before they are scored for robustness, and the parameters of scoring."""
