"""Small fakes in the layouts of photograph data sets, which tests share: real names and tables, tiny pictures."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
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


CIFAR_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}


def cifar_files(train=2, test=1, protocol=2):
    """CIFAR-100's Python files, with `train` and `test` images a class instead of 500 and 100.

    Red is twice the class's number, green its place among its images, and the upper left pixel has blue 255.
    """
    fine = sorted(name for names in CIFAR_SUPERCLASSES.values() for name in names.split())
    coarse = sorted(CIFAR_SUPERCLASSES)
    above = [next(i for i, c in enumerate(coarse) if name in CIFAR_SUPERCLASSES[c].split()) for name in fine]

    def part(first, count):
        data = np.zeros((count, 100, 3, 32, 32), np.uint8)
        data[:, :, 0] = 2 * np.arange(100)[:, None, None]
        data[:, :, 1] = np.arange(first, first + count)[:, None, None, None]
        data[:, :, 2, 0, 0] = 255
        labels = {"fine_labels": [*range(100)] * count, "coarse_labels": above * count}
        return {"filenames": ["x"] * 100 * count, **labels, "data": data.reshape(-1, 3072)}

    parts = {"train": part(0, train), "test": part(train, test)}
    parts["meta"] = {"fine_label_names": fine, "coarse_label_names": coarse}
    return {f"cifar-100-python/{name}": pickle.dumps(content, protocol) for name, content in parts.items()}


def bird_files(each=2, size=(9, 7)):
    """CUB-200-2011 of `each` images of each of 200 classes, red as their class."""
    files, lines = {}, []
    for number in range(1, 201):
        for image in range(each):
            path = f"{number:03d}.Bird_{number}/Bird_{number}_{image:04d}_{7 * image}.jpg"
            files[f"CUB_200_2011/images/{path}"] = jpeg((number, 90, 40), size)
            lines.append(f"{len(lines) + 1} {path}\n")
    return {**files, "CUB_200_2011/images.txt": "".join(lines).encode()}


def png(colour, size=(84, 84)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def tiered_files(classes=None, each=3, protocol=2):
    """tieredImageNet's pickles with `each` images a class, by turns of the classes; red is ten times the class."""
    files = {}
    for split, count in (classes or {"train": 4, "val": 3, "test": 2}).items():
        labels = np.tile(np.arange(count), each)
        images = [np.frombuffer(png((10 * int(n), 90, 40)), np.uint8)[:, None] for n in labels]
        content = {
            "label_specific": labels,
            "label_general": labels // 2,
            "label_specific_str": [f"{split} thing {n}" for n in range(count)],
            "label_general_str": [f"{split} category {n}" for n in range((count + 1) // 2)],
        }
        files[f"{split}_images_png.pkl"] = pickle.dumps(images, protocol)
        files[f"{split}_labels.pkl"] = pickle.dumps(content, protocol)
    return files
