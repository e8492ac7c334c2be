"""Losses, the training loop and its settings, and the weights it writes."""
