"""One module a data set: its facts in `RECIPE`, and `convert`, which turns the original files into nnU-Net's."""
