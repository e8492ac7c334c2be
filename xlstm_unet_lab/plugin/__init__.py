"""The napari plugin: its widgets, what they compute, and its readers."""
