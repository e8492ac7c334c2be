"""What a network answers for a whole image."""

from xlstm_unet_lab.inference.sliding_window import Windows, sliding_boxes, whole_from


def sliding_window(network, image, patch_size, row_by_row=False, **options):
    """Logits of the whole image, (num_classes, *spatial), from overlapping windows: options are fields of `Windows`."""
    boxes = sliding_boxes(network, image, patch_size, Windows(**options), row_by_row)
    return whole_from(boxes, image.shape[1:])
