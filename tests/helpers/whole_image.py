"""What a network answers for a whole image."""

from xlstm_unet_lab.inference.sliding_window import Windows, sliding_boxes, whole_from


def sliding_window(network, image, patch_size, **options):
    """Logits of the whole image, (num_classes, *spatial), from overlapping windows: options are fields of `Windows`."""
    return whole_from(sliding_boxes(network, image, patch_size, Windows(**options)), image.shape[1:])
