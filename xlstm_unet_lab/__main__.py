"""`python -m xlstm_unet_lab`: the command line where its script is not on the path."""

from xlstm_unet_lab.cli import main

main()
