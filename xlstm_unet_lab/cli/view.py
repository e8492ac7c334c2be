"""The command that shows a case: in napari, or in a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xlstm_unet_lab.cli.app import Device, Mirror, Root, RunFold, Split, Which, app, room_for, say
from xlstm_unet_lab.cli.runs import predictions_of_run

if TYPE_CHECKING:
    from xlstm_unet_lab.overlays.description import Overlay


@app.command()
def view(
    shown: Annotated[Path, typer.Argument(metavar="RUN_OR_IMAGE", help="A run, or an image file.")],
    case: Annotated[str | None, typer.Option(help="Of a run: the name of a case.", show_default="the first")] = None,
    labels: Annotated[Path | None, typer.Option(help="Of an image: the file of the predicted labels.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Of an image: the file of the true labels.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write a PNG picture instead of opening a window.")] = None,
    in_3d: Annotated[bool, typer.Option("--3d", help="Show a volume in 3-D, not slice by slice.")] = False,
    split: Split = "test",
    fold: RunFold = None,
    which: Which = "best",
    mirror: Mirror = False,
    device: Device = None,
    root: Root = None,
) -> None:
    """Look at a case: image, labels, truth and errors in a napari window or a picture, and in words."""
    from xlstm_unet_lab.inference.load import is_run
    from xlstm_unet_lab.overlays.description import overlay_outcome

    of_image = {"--labels": labels, "--truth": truth}
    if is_run(shown):
        if given := [name for name, file in of_image.items() if file is not None]:
            raise typer.BadParameter(f"{shown} is a run, whose cases have labels: leave out {' and '.join(given)}")
        chosen = {"split": split, "fold": fold, "which": which, "root": root, "mirror": mirror, "device": device}
        predictions = predictions_of_run(shown, chosen)
        overlay = overlay_outcome(predictions, case or predictions.names[0])
    elif case is not None:
        raise typer.BadParameter(f"{shown} is no run directory: --case names a case of a run")
    else:
        overlay = _of_image(shown, labels, truth)
    room_for(out)
    say(overlay.describe())
    ndisplay = 3 if in_3d and len(overlay.shape) == 3 else 2
    try:
        if out is not None:
            return say(overlay.screenshot(out, ndisplay=ndisplay))
        viewer = overlay.napari()
    except RuntimeError as error:  # a screen or OpenGL is missing: a matter of this machine, in one line
        raise OSError(f"{error}; --out writes a picture" if out is None else str(error)) from error
    import napari

    from xlstm_unet_lab.overlays.viewer import arrange

    viewer.dims.ndisplay = ndisplay
    arrange(viewer, overlay)
    napari.run()


def _of_image(image: Path, labels: Path | None, truth: Path | None) -> Overlay:
    from xlstm_unet_lab.data.images import read_case, read_label
    from xlstm_unet_lab.data.label_evidence import numbers_found
    from xlstm_unet_lab.overlays.description import overlay

    case = read_case(image)
    predicted, true = (None if file is None else read_label(file)[0] for file in (labels, truth))
    numbers_found((str(file), label) for file, label in ((labels, predicted), (truth, true)) if label is not None)
    in_colour = case.unit == "pixel" and len(case.image) == 3
    return overlay(
        case.image,
        prediction=predicted,
        truth=true,
        spacing=case.spacing,
        channel_names=("red", "green", "blue") if in_colour else None,
        unit="px" if case.unit == "pixel" else case.unit,
        title=image.name,
        anatomical=case.unit == "mm",
    )
