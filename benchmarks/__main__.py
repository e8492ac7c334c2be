"""`python -m benchmarks [NAME ...]`: run the measurements named, or all that take minutes."""

import argparse
import importlib

import torch

NAMES = {
    "import_time": "half a minute",
    "mlstm": "about 8 minutes",
    "training_step": "about 10 minutes",
    "mixer": "about 2 minutes",
    "first_lesson": "about 8 minutes; needs the nuclei data set",
    "large_volume": "about 6 minutes",
    "triton_kernels": "about 4 minutes; needs no GPU",
    "overlay": "half a minute; needs napari",
}
ON_A_GPU = {"gpu": "at most 8 minutes"}  # what is measured there when no name is given
LONG = {"accuracy": "about 3 hours, less for what is in benchmarks/results already"}  # only when asked for by name


def main() -> None:
    known = NAMES | ON_A_GPU | LONG
    listed = "; ".join(f"{name} ({duration} on 2 cores)" for name, duration in known.items())
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=f"Measure: {listed}.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"when none is given all but {', '.join(LONG)}")
    names = parser.parse_args().names or list(ON_A_GPU if torch.cuda.is_available() else NAMES)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no benchmark is named {unknown[0]!r}; there are {', '.join(known)}")
    for name in names:
        print(f"{name}: takes {known[name]} on 2 cores", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
