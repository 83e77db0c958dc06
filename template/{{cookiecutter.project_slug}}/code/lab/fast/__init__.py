"""Faster training: a store of decoded images, batched augmentation, and switches for the step itself."""
