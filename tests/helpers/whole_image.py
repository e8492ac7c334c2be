"""What a network answers for a whole image."""

from xlstm_unet_lab.inference.sliding_window import sliding_slabs, whole_from_slabs


def sliding_window(network, image, **options):
    """Logits of the whole image, (num_classes, *spatial), from overlapping windows: options as of `sliding_slabs`."""
    return whole_from_slabs(sliding_slabs(network, image, **options), rows=image.shape[1], axis=1)
