"""Measurements of speed and memory that anyone can rerun: `make bench`, or `python -m benchmarks NAME ...`.

What is compared runs side by side in one process, turn by turn, so that a busy machine slows all of it alike. Only the
ratios mean something on another machine. Results are kept in `benchmarks/results/` with the machine and the versions.
"""
