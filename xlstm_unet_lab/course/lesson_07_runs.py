"""Five small runs that went wrong, named by letters, for the failure lab of lesson 07.

    run = start("A", steps=100); print(run.complaint)

Each is real: its network is trained when it is started (D is only scored). What was done wrong stands in the function
that makes the run, so who wants to find out by probing does not read on.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data_recipes.phantom_abdomen import LABELS, scene
from data_recipes.phantom_microscopy import microscopy
from xlstm_unet_lab.course.lesson_07_probes import Loss, Run, Step
from xlstm_unet_lab.data.normalise import normalise
from xlstm_unet_lab.evaluation import metrics
from xlstm_unet_lab.models.presets import build
from xlstm_unet_lab.nn.vil import MLSTMCell
from xlstm_unet_lab.ops.checks import did_you_mean
from xlstm_unet_lab.training.losses import segmentation_loss

PATCH = (64, 64)
PATIENCE = 150  # steps after which B and E stop waiting for their fault, which comes much sooner


def start(name: str, steps: int = 100) -> Run:
    """Make the run of that letter, A to E. A trains for three times `steps`, C for twice; B and E until they break.

    Sets PyTorch's random seed. Raises ValueError for another letter.
    """
    if name not in RUNS:
        raise ValueError(f"run {name!r} is unknown: {did_you_mean(name, RUNS)}")
    torch.manual_seed(0)
    return RUNS[name](steps)


def _item(image: np.ndarray, label: np.ndarray, spacing: Sequence[float] = (1.0, 1.0)) -> dict:
    channels = torch.from_numpy(normalise(image[None]))
    return {"image": channels, "label": torch.from_numpy(label.astype(np.int64)), "spacing": tuple(spacing)}


def _cells(seeds: range, size: tuple[int, int] = PATCH, choose: Callable = lambda instances, seed: instances > 0):
    """Images of cells with a label of 0 and 1; `choose` picks the pixels of 1."""
    pairs = [(seed, *microscopy(seed, size, radius=7.0)) for seed in seeds]
    return [_item(image, choose(instances, seed)) for seed, image, instances in pairs]


def _network(name: str = "unet") -> nn.Module:
    return build(name, spatial_dims=2, in_channels=1, num_classes=2, patch_size=PATCH, features=(8, 16, 32))


def _stack(items: Sequence[dict]) -> tuple[Tensor, Tensor]:
    return torch.stack([item["image"] for item in items]), torch.stack([item["label"] for item in items])


def _train(model: nn.Module, loss: Loss, items: Sequence[dict], steps: int, rate: float = 3e-3, batch: int = 8) -> dict:
    """Train on random batches until a loss is not finite; returns what a Run keeps of it."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    generator, records = torch.Generator().manual_seed(0), []
    for step in range(1, steps + 1):
        picked = torch.randperm(len(items), generator=generator)[:batch].tolist()
        image, label = _stack([items[n] for n in picked])
        value = loss(model.train()(image), label)
        records.append(Step(step, value.item()))
        if not math.isfinite(records[-1].loss):
            break
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return {"records": records, "model": model, "loss": loss, "image": image, "label": label}


def _dice(model: nn.Module, items: Sequence[dict]) -> float:
    """The mean Dice over images."""
    image, label = _stack(items)
    with torch.no_grad():
        found = torch.cat([model.eval()(part).argmax(1) for part in image.split(16)])
    return float(np.mean([metrics.dice(one.numpy(), true.numpy()) for one, true in zip(found, label, strict=True)]))


# ---------------------------------------------------------------------------------- the runs; spoilers from here on


def _run_a(steps: int) -> Run:
    """Patches that overlap were cut first and divided into training and validation afterwards."""

    def drawn_by_lot(instances: np.ndarray, seed: int) -> np.ndarray:
        chosen = np.random.default_rng(seed).random(instances.max() + 1) < 0.5
        return chosen[instances] & (instances > 0)

    images, new = _cells(range(500, 502), (96, 96), drawn_by_lot), _cells(range(600, 608), PATCH, drawn_by_lot)
    windows = [(slice(y, y + 64), slice(x, x + 64)) for y in range(0, 33, 4) for x in range(0, 33, 4)]
    patches = [
        item | {"image": item["image"][:, *window], "label": item["label"][window]}
        for item in images
        for window in windows
    ]
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(1)).tolist()
    train, val = ([patches[n] for n in part] for part in (order[len(order) // 5 :], order[: len(order) // 5]))
    log = _train(_network(), segmentation_loss, train, 3 * steps)
    return Run(
        f"The marker is easy to find: Dice {_dice(log['model'], val):.2f} on validation patches that the network has "
        f"never trained on. On the next eight images it is {_dice(log['model'], new):.2f}. Did the microscope change?",
        *(train, val),
        **log,
    )


class _Sums(nn.Module):
    """Twice the overlap and the sizes of every class, over the whole batch."""

    def forward(self, probabilities: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        axes = (0, *range(2, truth.ndim))
        return 2 * (probabilities * truth).sum(axes), (probabilities + truth).sum(axes)


class _DiceInFloat16(nn.Module):
    """Dice loss of all classes, background too, in float16; logits in float64 stay what they are, for a replay."""

    def __init__(self):
        super().__init__()
        self.sums = _Sums()

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        probabilities = (logits.half() if logits.dtype == torch.float32 else logits).softmax(1)
        truth = F.one_hot(label, logits.shape[1]).movedim(-1, 1).to(probabilities.dtype)
        overlap, sizes = self.sums(probabilities, truth)
        return 1 - (overlap / sizes).mean()


def _run_b(_: int) -> Run:
    """Dice was computed in float16, whose largest number is 65,504, and its sums run over more pixels than that."""
    train, val = _cells(range(100, 124)), _cells(range(200, 204))
    log = _train(_network(), _DiceInFloat16(), train, PATIENCE, batch=11)
    first, *_, last = records = log["records"]
    best = min(records[:-1], key=lambda record: record.loss)
    return Run(
        f"The loss fell from {first.loss:.2f} to {best.loss:.2f} in {best.step} steps. It was going so well! Then it "
        f"jumped to {records[best.step].loss:.2f}, and in step {last.step} it was {last.loss}.",
        *(train, val, "float16"),
        **log,
    )


def _dice_of_each_patch(logits: Tensor, label: Tensor) -> Tensor:
    p, truth = logits.softmax(1)[:, 1].flatten(1), label.flatten(1)
    return (1 - 2 * (p * truth).sum(1) / (p.sum(1) + truth.sum(1) + 1e-8)).mean()


def _run_c(steps: int) -> Run:
    """Dice was computed for each patch and without smoothing: a patch without the class costs 1 and has no gradient."""

    def large_ones(instances: np.ndarray, seed: int) -> np.ndarray:
        return (np.bincount(instances.ravel()) > 260)[instances] & (instances > 0)

    train, val = _cells(range(300, 348), PATCH, large_ones), _cells(range(400, 408), PATCH, large_ones)
    log = _train(_network(), _dice_of_each_patch, train, 2 * steps)
    reached = np.mean([record.loss for record in log["records"][-10:]])
    return Run(
        f"The loss came down from {log['records'][0].loss:.2f} to {reached:.2f} and stays there, whatever I do to the "
        "learning rate. The pictures look better than that.",
        *(train, val),
        **log,
    )


def _run_d(_: int) -> Run:
    """The spacing was written down in the order (x, y, z)."""
    wrong = {"spacing": (3.0, 3.0, 8.0)}
    items = [_item(image, label == LABELS["liver"], **wrong) for image, label in map(scene, (1, 2))]
    truth = items[1]["label"].numpy() > 0
    prediction = np.zeros_like(truth)
    prediction[1:] = truth[:-1]
    near = metrics.surface_dice(prediction, truth, **wrong, tolerance=3.0)
    return Run(
        f"Dice of the liver is only {metrics.dice(prediction, truth):.2f}, but its surface is right to 3 mm nearly "
        f"everywhere: surface Dice {near:.2f}, HD95 {metrics.hausdorff95(prediction, truth, **wrong):.1f} mm. The "
        "radiologist says that it sits a whole slice too high, and that her slices are 8 mm thick.",
        *(items[:1], items[1:]),
    )


class _BareExponential(nn.Module):
    """The weights exp(B_t - B_s + i_s) of the mLSTM's parallel form, as they stand in the formula."""

    def forward(self, i: Tensor, f: Tensor) -> Tensor:
        summed = F.logsigmoid(f).cumsum(-1)
        exponents = summed[..., :, None] - summed[..., None, :] + i[..., None, :]
        future = torch.ones_like(exponents, dtype=torch.bool).triu(1)
        return exponents.masked_fill(future, -torch.inf).exp()


class _BareCell(MLSTMCell):
    """An mLSTM without the stabiliser. Products, sums and the division are taken in float64: only the weights overflow.

    In float32 a product of weight, query and key may overflow at a gate below the limit of exp, unseen by a replay.
    """

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.weights = _BareExponential()

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v, i, f = self.heads_and_gates(q, k, v)
        attention = q.double() @ k.double().mT / math.sqrt(q.shape[-1]) * self.weights(i, f).double()
        h = attention @ v.double() / attention.sum(-1, keepdim=True).abs().clamp_min(1)
        return self.norm(h.to(v.dtype))  # a mean of values, or nearly: it fits again


def _run_e(_: int) -> Run:
    """The mLSTM was written without its stabiliser, so that exp of an input gate overflows.

    The gates hardly move until the learning rate is raised. Then they leap, by tens a step, so that the limit is passed
    by far: rounding, which differs from machine to machine, decides on the step but not on the diagnosis.
    """
    train, val = _cells(range(100, 124)), _cells(range(200, 204))
    model = _network("xlstm_unet_bot")
    for module in list(model.modules()):
        if isinstance(getattr(module, "cell", None), MLSTMCell):
            module.cell = _BareCell(2 * module.up.in_features, module.cell.heads)
    calm = _train(model, segmentation_loss, train, 20, rate=1e-2)["records"]
    log = _train(model, segmentation_loss, train, PATIENCE, rate=0.2)
    log["records"] = calm + [Step(len(calm) + step, loss) for step, loss in log["records"]]
    first, *_, last = log["records"]
    return Run(
        f"I built the mixer from the formula in the paper. The loss fell from {first.loss:.2f} to {calm[-1].loss:.2f} "
        f"in {len(calm)} steps. That was slow, so I raised the learning rate, and in step {last.step} it is "
        f"{last.loss}. Too high a rate makes a loss jump, but NaN? I compute in float32, products and sums even in "
        "float64.",
        *(train, val),
        **log,
    )


RUNS = {"A": _run_a, "B": _run_b, "C": _run_c, "D": _run_d, "E": _run_e}
