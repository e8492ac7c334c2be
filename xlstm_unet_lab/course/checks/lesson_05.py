"""Lesson 05: how large a convolution's output is, and how far it sees."""

from xlstm_unet_lab.course.checks.words import exercise
from xlstm_unet_lab.course.exercise import Case

# --------------------------------------------------------------------------------------- 05.1, the size of an output


def output_size(size, kernel, stride, padding):
    axes = zip(size, kernel, stride, padding, strict=True)
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in axes)


OUTPUT_SIZE = exercise(
    "05.1",
    output_size,
    cases=(
        Case("a 3 x 3 kernel that keeps the size of 64 x 48", ((64, 48), (3, 3), (1, 1), (1, 1))),
        Case("the same with stride 2", ((64, 48), (3, 3), (2, 2), (1, 1))),
        Case("odd sizes, stride 2", ((45, 61), (3, 3), (2, 2), (1, 1))),
        Case("a 7 x 7 kernel without padding, stride 3", ((32, 33), (7, 7), (3, 3), (0, 0))),
        Case("a volume of few slices, which are not halved", ((20, 64, 65), (1, 3, 3), (1, 2, 2), (0, 1, 1))),
        Case("a kernel as large as the image", ((5, 5), (5, 5), (2, 2), (0, 0))),
    ),
    mistakes={
        "the first window is missing": (" // s + 1", " // s"),
        "padding on one side": ("2 * p", "p"),
        "rounded up": ("- k) // s", "- k + s - 1) // s"),
        "not rounded": ("// s", "/ s"),
        "only divided by the stride": ("(n + 2 * p - k) // s + 1", "n // s"),
        "all windows divided by the stride": ("- k) // s + 1", "- k + 1) // s"),
        "the first axis for all": (
            "zip(size, kernel, stride, padding, strict=True)",
            "((n, kernel[0], stride[0], padding[0]) for n in size)",
        ),
    },
)

# ------------------------------------------------------------------------------------------ 05.2, the receptive field


def receptive_field(kernels, strides):
    size, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        size += (kernel - 1) * step
        step *= stride
    return size, step


RECEPTIVE_FIELD = exercise(
    "05.2",
    receptive_field,
    cases=(
        Case("one convolution of 3", ((3,), (1,))),
        Case("two convolutions of 3", ((3, 3), (1, 1))),
        Case("a convolution of 3 after one with stride 2", ((3, 3), (2, 1))),
        Case("a convolution of 5 with stride 2 as the last layer", ((3, 5), (1, 2))),
        Case("7 with stride 2, then 3 with stride 2, as many classifiers begin", ((7, 3, 3), (2, 2, 1))),
        Case("convolutions of 1 see no neighbours", ((1, 1), (1, 2))),
        Case("the encoder of a U-Net with four stages", ((3,) * 10, (1, 1, 1, 1, 2, 1, 2, 1, 2, 1))),
        Case("no layer at all: an input sees itself", ((), ())),
    ),
    mistakes={
        "a layer's own stride too early": ("(kernel - 1) * step", "(kernel - 1) * step * stride"),
        "strides do not widen": ("(kernel - 1) * step", "kernel - 1"),
        "k in place of k - 1": ("(kernel - 1)", "kernel"),
        "begins at 0": ("size, step = 1, 1", "size, step = 0, 1"),
        "kernels multiplied": ("size += (kernel - 1) * step", "size *= kernel"),
        "strides added": ("step *= stride", "step += stride - 1"),
        "from the last layer": ("zip(kernels, strides, strict=True)", "zip(kernels[::-1], strides[::-1], strict=True)"),
    },
)

EXERCISES = (OUTPUT_SIZE, RECEPTIVE_FIELD)
