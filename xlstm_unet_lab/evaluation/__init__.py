"""Predictions for whole images, the metrics that score them, and the tables that report the scores."""
