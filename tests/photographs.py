"""Small fakes in the layouts of photograph data sets, which tests share: real names and tables, tiny pictures."""

import io
import tarfile
from pathlib import Path

from PIL import Image
from scipy.io import savemat

KEYS = ("trnid", "valid", "tstid")


def jpeg(colour, size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "JPEG", quality=95)
    return file.getvalue()


def mat(**arrays):
    file = io.BytesIO()
    savemat(file, arrays)
    return file.getvalue()


def write_files(folder, files):
    """Each file below `folder`."""
    for name, content in files.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_tar(path, files):
    """A tar.xz of the files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def flower_files(each=4, size=(8, 8)):
    """Flowers-102 of `each` images of each of 102 classes, red as twice their class, by turns of the classes.

    The first third of a class is for training, the next for validation, the rest are test images.
    """
    numbers = range(1, 102 * each + 1)
    labels = [(n - 1) % 102 + 1 for n in numbers]
    parts = [(n - 1) // 102 * 3 // each for n in numbers]
    files = {
        f"flowers-102/jpg/image_{n:05d}.jpg": jpeg((2 * label, 90, 40), size)
        for n, label in zip(numbers, labels, strict=True)
    }
    files["flowers-102/imagelabels.mat"] = mat(labels=[labels])
    chosen = {key: [[n for n, p in zip(numbers, parts, strict=True) if p == part]] for part, key in enumerate(KEYS)}
    return {**files, "flowers-102/setid.mat": mat(**chosen)}


def grocery_files(each=4, size=(8, 8), top="grocery-store"):
    """Grocery Store of `each` images of each of 81 classes, red as three times their class.

    The last image of a class is a test image, the one before is for validation, the others for training.
    """
    files, lists = {}, {"train": [], "val": [], "test": []}
    for label in range(81):
        for image in range(each):
            part = {each - 1: "test", each - 2: "val"}.get(image, "train")
            path = f"{part}/Fruit/Kind/Kind-{label}/Kind-{label}_{image:03d}.jpg"
            files[f"{top}/{path}"] = jpeg((3 * label, 90, 40), size)
            lists[part].append(f"{path}, {label}, {label // 2}\n")
    return {**files, **{f"{top}/{part}.txt": "".join(lines).encode() for part, lines in lists.items()}}
