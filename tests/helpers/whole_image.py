"""What a network answers for a whole image."""

from xlstm_unet_lab.inference.sliding_window import sliding_boxes, whole_from


def sliding_window(network, image, **options):
    """Logits of the whole image, (num_classes, *spatial), from overlapping windows: options as of `sliding_boxes`."""
    return whole_from(sliding_boxes(network, image, **options), image.shape[1:])
