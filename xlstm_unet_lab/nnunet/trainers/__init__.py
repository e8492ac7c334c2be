"""The folder that nnU-Net imports trainers from: every file in it, under its bare name."""
