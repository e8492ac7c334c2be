"""This package inside nnU-Net, and nnU-Net's results inside this package; nnunetv2 is imported where it is needed."""
