"""Methods that score entries with trained weights while the prompt is read."""
