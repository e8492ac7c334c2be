"""From a trained network and an image to labels: windows, mirroring, volumes slice by slice, uncertainty, files."""
