"""Figures, views, pages and the text of the model card."""
