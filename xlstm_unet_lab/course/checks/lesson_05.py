"""Lesson 05: how large a convolution's output is, and how far it sees."""

from xlstm_unet_lab.course.exercise import Case, Exercise, Mistake

# --------------------------------------------------------------------------------------- 05.1, the size of an output


def output_size(size, kernel, stride, padding):
    axes = zip(size, kernel, stride, padding, strict=True)
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in axes)


OUTPUT_SIZE = Exercise(
    number="05.1",
    title="the size of an output",
    goal="Write `output_size(size, kernel, stride, padding)`: a tuple with the number of positions that a convolution "
    "leaves along each axis.",
    minutes=6,
    difficulty=1,
    reference=output_size,
    cases=(
        Case("a 3 x 3 kernel that keeps the size of 64 x 48", ((64, 48), (3, 3), (1, 1), (1, 1))),
        Case("the same with stride 2", ((64, 48), (3, 3), (2, 2), (1, 1))),
        Case("odd sizes, stride 2", ((45, 61), (3, 3), (2, 2), (1, 1))),
        Case("a 7 x 7 kernel without padding, stride 3", ((32, 33), (7, 7), (3, 3), (0, 0))),
        Case("a volume of few slices, which are not halved", ((20, 64, 65), (1, 3, 3), (1, 2, 2), (0, 1, 1))),
        Case("a kernel as large as the image", ((5, 5), (5, 5), (2, 2), (0, 0))),
    ),
    hints=(
        "Draw a row of 7 positions with one more on each side, and lay a kernel of 3 on it, moved on by 2 each "
        "time. How often does it fit?",
        "The first window begins at the left end. How far can the last one have moved? The padded row is n + 2p long "
        "and the window k.",
        "Along one axis `(n + 2 * p - k) // s + 1`; `zip` goes over the axes.",
    ),
    mistakes=(
        Mistake("the first window is missing", " // s + 1", " // s").says(
            "you count the moves of the window. It has a first place before any move: one more output than moves."
        ),
        Mistake("padding on one side", "2 * p", "p").says(
            "you add the padding once. It is added at both ends of the axis."
        ),
        Mistake("rounded up", "- k) // s", "- k + s - 1) // s").says(
            "you round up. A last window that would reach over the edge is not computed: round down."
        ),
        Mistake("not rounded", "// s", "/ s").says(
            "your sizes are not whole: there is no half window. Divide with `//`."
        ),
        Mistake("only divided by the stride", "(n + 2 * p - k) // s + 1", "n // s").says(
            "you divide by the stride and leave out kernel and padding. Try the kernel as large as the image."
        ),
        Mistake("all windows divided by the stride", "- k) // s + 1", "- k + 1) // s").says(
            "you count the windows at stride 1 and divide by the stride. Of 5 windows every second one is 3, not 2: "
            "divide the moves, then count the first window."
        ),
        Mistake(
            "the first axis for all",
            "zip(size, kernel, stride, padding, strict=True)",
            "((n, kernel[0], stride[0], padding[0]) for n in size)",
        ).says("you use kernel, stride and padding of the first axis for every axis. Each axis has its own."),
    ),
    not_tested="kernels larger than the padded image, which should be refused; dilation.",
)

# ------------------------------------------------------------------------------------------ 05.2, the receptive field


def receptive_field(kernels, strides):
    size, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        size += (kernel - 1) * step
        step *= stride
    return size, step


RECEPTIVE_FIELD = Exercise(
    number="05.2",
    title="the receptive field of a stack",
    goal="Write `receptive_field(kernels, strides)`: how many input pixels, along one axis, an output of the last "
    "layer can depend on, and how many input pixels lie between two neighbouring outputs.",
    minutes=10,
    difficulty=2,
    reference=receptive_field,
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
    hints=(
        "Go from the input to the last layer and carry two numbers: what an output sees so far, and how far apart two "
        "neighbouring outputs are, in input pixels.",
        "A kernel of k joins k neighbours of the layer before. The first and the last are k - 1 distances apart.",
        "In this order: `size += (kernel - 1) * step`, then `step *= stride`; both begin at 1.",
    ),
    mistakes=(
        Mistake("a layer's own stride too early", "(kernel - 1) * step", "(kernel - 1) * step * stride").says(
            "you multiply by a layer's stride before you use the distance. The kernel lies on the outputs of the layer "
            "*before*; its own stride only moves its own outputs apart."
        ),
        Mistake("strides do not widen", "(kernel - 1) * step", "kernel - 1").says(
            "you add k - 1 for every layer. After a stride of 2 the neighbours are 2 pixels apart, so the same kernel "
            "reaches twice as far."
        ),
        Mistake("k in place of k - 1", "(kernel - 1)", "kernel").says(
            "you add k distances for a kernel of k. Between k neighbours there are k - 1 distances."
        ),
        Mistake("begins at 0", "size, step = 1, 1", "size, step = 0, 1").says(
            "you begin at 0. An input pixel sees itself: begin at 1."
        ),
        Mistake("kernels multiplied", "size += (kernel - 1) * step", "size *= kernel").says(
            "you multiply the kernels. Two convolutions of 3 see 5 pixels, not 9: windows of neighbours overlap."
        ),
        Mistake("strides added", "step *= stride", "step += stride - 1").says(
            "you add up the strides. Every second of every second output: distances multiply."
        ),
        Mistake(
            "from the last layer",
            "zip(kernels, strides, strict=True)",
            "zip(kernels[::-1], strides[::-1], strict=True)",
        ).says("you go from the last layer to the first. The distances grow from the input on: begin there."),
    ),
    not_tested="dilated and transposed convolutions; axes that differ, which are two calls; where the field lies.",
)

EXERCISES = (OUTPUT_SIZE, RECEPTIVE_FIELD)
