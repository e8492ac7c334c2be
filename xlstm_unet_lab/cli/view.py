"""The command that shows a case: in napari, or in a picture."""

from pathlib import Path
from typing import Annotated

import typer

from xlstm_unet_lab.cli.app import app, room_for, say
from xlstm_unet_lab.cli.options import Device, Mirror, Root, RunFold, Split, Which
from xlstm_unet_lab.cli.runs import predictions_of_run


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
    from xlstm_unet_lab.overlays.description import overlay_files, overlay_outcome

    if is_run(shown):
        if given := [name for name, file in {"--labels": labels, "--truth": truth}.items() if file is not None]:
            raise typer.BadParameter(f"{shown} is a run, whose cases have labels: leave out {' and '.join(given)}")
        chosen = {"split": split, "fold": fold, "which": which, "root": root, "mirror": mirror, "device": device}
        predictions = predictions_of_run(shown, chosen)
        overlay = overlay_outcome(predictions, case or predictions.names[0])
    elif case is not None:
        raise typer.BadParameter(f"{shown} is no run directory: --case names a case of a run")
    else:
        overlay = overlay_files(shown, labels, truth)
    room_for(out)
    say(*overlay.describe().split("\n"))
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
