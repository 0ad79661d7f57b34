"""Pictures to explain and to train on: Tiny-ImageNet, VOC 2012 with masks, generated shapes.

Every loader returns a Hugging Face ``datasets.Dataset`` whose pictures are decoded when they are read. A source is a
hub id or a local path, given as an argument or by environment variable; what is missing or broken is named with its
file.
"""

from .drawing import shape_pairs, shapes
from .tiny import tiny_imagenet, tiny_imagenet_arrays, words
from .voc import VOC_CLASSES, VOC_TO_IMAGENET, VOC_TO_TINY_IMAGENET, VOID, best_target, voc2012, voc_pairs
