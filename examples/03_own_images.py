"""Your own images: meta-train on folders of photographs, then learn five new classes from one photo of each.

Here the photographs are drawn: each class is a pattern of coloured squares, seen through noise. Replace `draw` by your
own files in `photos/`.
"""

from pathlib import Path

import numpy as np
from PIL import Image

import metakm


def draw(path: Path, pattern: np.ndarray, generator: np.random.Generator) -> None:
    """Write a pattern of squares, [4, 4, 3], as an image with noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    squares = pattern.repeat(8, axis=0).repeat(8, axis=1)
    noise = generator.normal(0, 30, squares.shape)
    Image.fromarray((squares + noise).clip(0, 255).astype(np.uint8)).save(path)


def main() -> None:
    """Make photos/, train a small model on it, and use it."""
    generator = np.random.default_rng(0)
    for split, classes in {"train": 16, "val": 6, "test": 6}.items():
        for k in range(classes):
            pattern = generator.integers(0, 256, (4, 4, 3))
            for i in range(4):
                draw(Path("photos", split, f"{split}-{k}", f"{i}.png"), pattern, generator)
    small = {"algo": "km-proto", "backbone": "conv4-16-stride", "image_size": 32, "queries": 3}
    tested = {"iterations": 20, "meta_batch": 2, "val_tasks": 4, "eval_tasks": 20, "quiet": True, "overwrite": True}
    run = metakm.train(metakm.RunConfig(dataset="folder", data_root=Path("photos"), ways=5, shots=1, **small, **tested))
    files = sorted(Path("photos/test").glob("*/0.png"))[:5]
    names = [path.parent.name for path in files]
    classifier = run.adapt(metakm.read_images(files, run.image_shape), names)
    new = [path.with_name("3.png") for path in files]
    for name, predicted in zip(names, classifier.predict(metakm.read_images(new, run.image_shape)), strict=True):
        print(f"{name}: recognised as {predicted}")


if __name__ == "__main__":
    main()
