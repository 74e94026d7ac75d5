"Image folders for the tests."
from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder, n=12, size=40, seed=0, classes=('',), images=None):
    "Writes PNG files, `n` of noise or `images` (n, 3, H, W) uint8, into the sub-folders `classes` by turns."
    folder = Path(folder)
    if images is None: images = np.random.default_rng(seed).integers(0, 256, (n, 3, size, size), dtype=np.uint8)
    for i, image in enumerate(np.asarray(images).transpose(0, 2, 3, 1)):
        place = folder/classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place/f'{i:02}.png')
    return folder
