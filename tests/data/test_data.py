"""Data sets: batches are pure functions of their numbers, images are what the files hold."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pysoftq.data.batching import batch_count, batch_slices
from pysoftq.data.datasets import PHOTO_MEAN, PHOTO_STD, load_dataset
from pysoftq.data.images import Dataset, Images, draw_moves, shift_and_flip


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", seed=3)


def pictures(count: int, size: tuple[int, int] = (5, 6), seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(1, 256, (count, *size, 3), dtype=np.uint8))


def test_digits_are_split_in_fifths_of_each_class(digits: Dataset) -> None:
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert digits.train.pixels.shape[1:] == (8, 8, 1)
    assert digits.in_channels == 1
    counts = torch.bincount(digits.test.labels)
    whole = counts + torch.bincount(digits.train.labels)
    assert ((counts - whole / 5).abs() <= 1).all()


def test_digits_are_those_of_scikit_learn(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    both = torch.cat([digits.train.pixels, digits.test.pixels]).flatten(1).numpy() / 15
    found = sorted(map(tuple, both.tolist()))
    assert found == sorted(map(tuple, source.data.tolist()))


def test_split_depends_on_the_seed_alone(digits: Dataset) -> None:
    again, other = load_dataset("digits", seed=3), load_dataset("digits", seed=4)
    assert again.fingerprint() == digits.fingerprint()
    assert other.fingerprint() != digits.fingerprint()


def test_normalized_training_set_is_standard(digits: Dataset) -> None:
    images = digits.normalize(digits.train.pixels)
    assert images.shape == (1437, 1, 8, 8)
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_normalization_of_photographs() -> None:
    pixels = pictures(4)
    images = Images(pixels, torch.zeros(4, dtype=torch.int64))
    data = Dataset("x", images, images, ("a",), PHOTO_MEAN, PHOTO_STD, 0, False)
    wanted = (pixels.double() / 255 - torch.tensor(PHOTO_MEAN)) / torch.tensor(PHOTO_STD)
    found = data.normalize(pixels)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, wanted.permute(0, 3, 1, 2).float(), rtol=1e-5, atol=1e-6)


def test_an_epoch_shows_every_image_once(digits: Dataset) -> None:
    batches = list(digits.batches(seed=1, epoch=0, batch_size=100, augment=False))
    assert [len(labels) for _, labels in batches] == [100] * 14 + [37]
    assert len(batches) == batch_count(1437, 100)
    shown = torch.cat([images for images, _ in batches]).flatten(1)
    stored = digits.normalize(digits.train.pixels).flatten(1)
    assert sorted(map(tuple, shown.tolist())) == sorted(map(tuple, stored.tolist()))


@pytest.mark.parametrize(
    ("examples", "size", "wanted"),
    [
        (10, 4, [4, 4, 2]),
        (8, 4, [4, 4]),
        (9, 4, [4, 5]),  # one example more would be a batch of its own
        (3, 2, [3]),
        (3, 1, [1, 1, 1]),
        (3, 5, [3]),
        (1, 4, [1]),
        (0, 4, []),
    ],
)
def test_batches_of_an_epoch(examples: int, size: int, wanted: list[int]) -> None:
    slices = batch_slices(examples, size)
    assert [batch.stop - batch.start for batch in slices] == wanted
    assert [place for batch in slices for place in range(examples)[batch]] == list(range(examples))
    assert batch_count(examples, size) == len(wanted)
    assert batch_slices(examples, size, 1) == slices[1:]


def test_a_lone_last_image_joins_the_batch_before() -> None:
    images = Images(pictures(9), torch.arange(9))
    data = Dataset("x", images, images, ("a",), PHOTO_MEAN, PHOTO_STD, 1, True)
    whole = list(data.batches(0, 0, 4))
    assert [len(labels) for _, labels in whole] == [4, 5]
    assert sorted(torch.cat([labels for _, labels in whole]).tolist()) == list(range(9))
    ((last, labels),) = data.batches(0, 0, 4, start=1)
    assert torch.equal(last, whole[1][0])
    assert torch.equal(labels, whole[1][1])


def test_images_keep_their_labels(digits: Dataset) -> None:
    by_image = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(
            digits.normalize(digits.train.pixels).contiguous(), digits.train.labels, strict=True
        )
    }
    images, labels = next(digits.batches(0, 0, 200, augment=False))
    assert [by_image[image.numpy().tobytes()] for image in images.contiguous()] == labels.tolist()


def test_batches_are_pure_functions_of_their_numbers(digits: Dataset) -> None:
    whole = list(digits.batches(seed=1, epoch=2, batch_size=128))
    torch.manual_seed(99)
    rest = list(digits.batches(seed=1, epoch=2, batch_size=128, start=7))
    assert len(rest) == len(whole) - 7
    for (images, labels), (images_again, labels_again) in zip(whole[7:], rest, strict=True):
        assert torch.equal(images, images_again)
        assert torch.equal(labels, labels_again)
    for seed, epoch in ((1, 3), (2, 2)):
        other = next(digits.batches(seed, epoch, 128))
        assert not torch.equal(other[1], whole[0][1])


def moved_one_by_one(pixels: np.ndarray, moves: np.ndarray, shift: int) -> np.ndarray:
    """Each image cut out of its padded self, and mirrored, by itself."""
    height, width = pixels.shape[1:3]
    padded = np.pad(pixels, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    cuts = [
        image[top : top + height, left : left + width][:, :: -1 if mirrored else 1]
        for image, (top, left, mirrored) in zip(padded, moves, strict=True)
    ]
    return np.stack(cuts)


@pytest.mark.parametrize("shift", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
def test_shifts_and_flips_are_those_of_each_image(shift: int, flip: bool) -> None:
    pixels = pictures(300)
    moves = draw_moves(np.random.default_rng(0), 300, shift, flip)
    found = shift_and_flip(pixels, torch.from_numpy(moves), shift)
    assert np.array_equal(found.numpy(), moved_one_by_one(pixels.numpy(), moves, shift))


def test_moves_are_spread_evenly() -> None:
    moves = draw_moves(np.random.default_rng(0), 9000, shift=1, flip=True)
    kinds, counts = np.unique(moves, axis=0, return_counts=True)
    assert kinds.tolist() == [[y, x, m] for y in range(3) for x in range(3) for m in range(2)]
    assert abs(counts - 500).max() < 100  # 4.6 standard deviations
    assert (draw_moves(np.random.default_rng(0), 50, shift=0, flip=False) == 0).all()


def test_batches_are_those_drawn_batch_by_batch(digits: Dataset) -> None:
    """The order of an epoch and the moves of each batch come from streams of their own."""
    order = np.random.default_rng((5, 2)).permutation(len(digits.train))
    for batch, (images, labels) in enumerate(digits.batches(seed=5, epoch=2, batch_size=500)):
        chosen = order[500 * batch : 500 * (batch + 1)]
        rng = np.random.default_rng((5, 2, batch + 1))
        shifts = rng.integers(0, 3, size=(2, len(chosen), 1))[..., 0]
        moves = np.column_stack([*shifts, np.zeros_like(chosen)])
        moved = moved_one_by_one(digits.train.pixels.numpy()[chosen], moves, 1)
        assert torch.equal(images, digits.normalize(torch.from_numpy(moved)))
        assert torch.equal(labels, digits.train.labels[chosen])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, three images each in train/, one each in test/, 8×6 pixels."""
    for part, count in (("train", 3), ("test", 1)):
        for label, name in enumerate(("zebra", "ant")):
            inside = tmp_path / part / name
            inside.mkdir(parents=True)
            for index in range(count):
                pixels = pictures(1, (6, 8), seed=10 * label + index)[0].numpy()
                Image.fromarray(pixels).save(inside / f"{index}.png")
    return tmp_path


def test_image_folder_is_read_in_sorted_order(folder: Path) -> None:
    data = load_dataset(f"imagefolder:{folder}")
    assert data.classes == ("ant", "zebra")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.pixels.shape == (6, 6, 8, 3)
    assert torch.equal(data.train.pixels[1], pictures(1, (6, 8), seed=11)[0])
    assert torch.equal(data.test.pixels[1], pictures(1, (6, 8), seed=0)[0])
    assert data.mean == PHOTO_MEAN


def test_hidden_folders_and_files_are_left_out(folder: Path) -> None:
    before = load_dataset(f"imagefolder:{folder}").fingerprint()
    for half in ("train", "test"):
        (folder / half / ".cache").mkdir()
        some = next(entry for entry in (folder / half).iterdir() if entry.name != ".cache")
        (some / "._a.png").write_bytes(b"no image")
    assert load_dataset(f"imagefolder:{folder}").fingerprint() == before


def test_grey_images_become_rgb(folder: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(grey).save(folder / "train" / "ant" / "0.png")
    data = load_dataset(f"imagefolder:{folder}")
    assert torch.equal(data.train.pixels[0], torch.from_numpy(grey)[..., None].expand(6, 8, 3))


def test_images_of_another_size_are_named_or_resized(folder: Path) -> None:
    odd = folder / "train" / "zebra" / "1.png"
    Image.fromarray(pictures(1, (9, 9))[0].numpy()).save(odd)
    with pytest.raises(ValueError, match=r"zebra/1\.png is 9×9, but .*ant/0\.png is 8×6"):
        load_dataset(f"imagefolder:{folder}")
    data = load_dataset(f"imagefolder:{folder}", image_size=12)
    assert data.train.pixels.shape == (6, 12, 12, 3)


def test_halves_of_different_size_are_refused(folder: Path) -> None:
    for path in (folder / "test").rglob("*.png"):
        Image.fromarray(pictures(1, (9, 9))[0].numpy()).save(path)
    with pytest.raises(ValueError, match=r"train/ are 8×6, of test/ 9×9"):
        load_dataset(f"imagefolder:{folder}")


def test_broken_image_is_named(folder: Path) -> None:
    (folder / "test" / "ant" / "0.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"test/ant/0\.png cannot be read as an image"):
        load_dataset(f"imagefolder:{folder}")


def test_incomplete_folders_are_named(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image folder .*nowhere"):
        load_dataset(f"imagefolder:{folder}/nowhere")
    (folder / "test" / "bee").mkdir()
    with pytest.raises(ValueError, match=r"test/bee holds no images: .*\.png"):
        load_dataset(f"imagefolder:{folder}")
    Image.fromarray(pictures(1, (6, 8))[0].numpy()).save(folder / "test" / "bee" / "0.png")
    with pytest.raises(ValueError, match="differ in the classes bee"):
        load_dataset(f"imagefolder:{folder}")


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        ((), "has no test/: expected train/CLASS/IMAGE .* train/cat/1.png.*; it holds nothing"),
        (("train",), "has no test/: .*; it holds train"),
        (("cat", "dog", "test"), "has no train/: .*; it holds cat, dog, test"),
        (("train", "test"), "train holds no class folders: expected train/CLASS/IMAGE"),
        (("train", "val", "valid"), "has val/, valid/: call the one to test on test/"),
    ],
)
def test_a_folder_of_another_layout_is_told_the_right_one(
    tmp_path: Path, folders: tuple[str, ...], told: str
) -> None:
    for name in folders:
        (tmp_path / name).mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        load_dataset(f"imagefolder:{tmp_path}")


def test_a_folder_of_one_class_is_refused(folder: Path) -> None:
    for half in ("train", "test"):
        shutil.rmtree(folder / half / "ant")
    with pytest.raises(ValueError, match="has one class, zebra"):
        load_dataset(f"imagefolder:{folder}")


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_the_test_folder(folder: Path, name: str) -> None:
    wanted = load_dataset(f"imagefolder:{folder}").fingerprint()
    (folder / "test").rename(folder / name)
    assert load_dataset(f"imagefolder:{folder}").fingerprint() == wanted


def test_validation_images_beside_test_images_are_told_of(folder: Path) -> None:
    (folder / "val").mkdir()
    with pytest.warns(UserWarning, match="val/ is not used: accuracies are those on test/"):
        load_dataset(f"imagefolder:{folder}")


def test_images_inside_of_folders_of_a_class_are_read(folder: Path) -> None:
    wanted = load_dataset(f"imagefolder:{folder}").fingerprint()
    inside = folder / "train" / "ant"
    (inside / "more").mkdir()
    (inside / "2.png").rename(inside / "more" / "0.PNG")
    (inside / "more" / "circle").symlink_to(inside)
    assert load_dataset(f"imagefolder:{folder}").fingerprint() == wanted


def test_files_that_are_left_out_are_named_and_counted(folder: Path) -> None:
    for number in range(7):
        (folder / "train" / "ant" / f"{number}.txt").touch()
    (folder / "train" / "loose.png").touch()
    with pytest.warns(
        UserWarning,
        match=r"train: left out, not images of a class by their names: loose\.png, ant/0\.txt.* "
        "and 3 more",
    ):
        load_dataset(f"imagefolder:{folder}")


def test_what_is_lost_of_images_is_told_once_for_all(folder: Path) -> None:
    for path in sorted(folder.rglob("*.png")):
        Image.new("RGBA", (8, 6), (1, 2, 3, 4)).save(path)
    with pytest.warns(UserWarning, match="images with transparent pixels") as told:
        load_dataset(f"imagefolder:{folder}")
    assert len(told) == 2  # of train/ and of test/
    assert "ant/0.png, ant/1.png, ant/2.png, zebra/0.png, zebra/1.png and 1 more" in str(
        told[0].message
    )


def deepen(folder: Path, factor: int) -> None:
    """Write 16-bit images in place of all, of values up to 63 times a factor."""
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        values = np.random.default_rng(number).integers(0, 64, (6, 8)) * factor
        Image.fromarray(values.astype(np.uint16)).save(path)


def test_images_of_16_bits_are_normalised_with_all_their_precision(folder: Path) -> None:
    deepen(folder, 1000)
    data = load_dataset(f"imagefolder:{folder}", mean=(0.5,), std=(0.25,))
    assert data.train.pixels.dtype == torch.float32
    before = data.train.pixels.clone()
    images = data.normalize(data.train.pixels)
    wanted = (np.asarray(Image.open(folder / "train" / "ant" / "0.png")) / 65535 - 0.5) / 0.25
    torch.testing.assert_close(images[0, 2], torch.from_numpy(wanted).float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(data.train.pixels, before)
    for inputs, _ in data.batches(0, 0, 2):
        assert inputs.dtype == torch.float32


def test_images_that_fill_little_of_their_range_are_told_of(folder: Path) -> None:
    deepen(folder, 60)
    with pytest.warns(UserWarning, match="standard deviation .* give `mean` and `std`"):
        load_dataset(f"imagefolder:{folder}")


def test_depths_that_differ_are_named(folder: Path) -> None:
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(folder / "train" / "zebra" / "1.png")
    with pytest.raises(ValueError, match=r"zebra/1\.png has more than 8 bits .*ant/0\.png has 8"):
        load_dataset(f"imagefolder:{folder}")
    deepen(folder / "train", 1000)
    with pytest.raises(ValueError, match="train/ and test/ differ in their bits"):
        load_dataset(f"imagefolder:{folder}")


def test_home_is_expanded_in_names_of_data_sets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert len(load_dataset("imagefolder:~").train) == 6


@pytest.mark.parametrize("name", ["mnist", "digits:x", "imagefolder", "imagefolder:", ""])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown data set"):
        load_dataset(name)


def test_own_normalization(folder: Path) -> None:
    name = f"imagefolder:{folder}"
    data = load_dataset(name, mean=(0.5,), std=(0.1, 0.2, 0.3))
    assert (data.mean, data.std) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert load_dataset(name, mean=(0.5,)).std == PHOTO_STD
    with pytest.raises(ValueError, match="mean has 2 values, the images have 3 channels"):
        load_dataset(name, mean=(0.5, 0.5))


def test_cifar_without_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(RuntimeError, match=r"cifar10 .* pip install torchvision"):
        load_dataset("cifar10")


def test_cifar_that_is_not_there_names_its_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def source(**options: object) -> None:
        raise RuntimeError("Dataset not found or corrupted.")

    module = types.ModuleType("torchvision")
    sources = types.SimpleNamespace(CIFAR10=source, CIFAR100=source)
    module.datasets = sources  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)
    with pytest.raises(
        OSError, match=f"cifar10 cannot be read from the folder {tmp_path}: Dataset"
    ):
        load_dataset("cifar10", data_root=tmp_path, download=False)


@pytest.mark.parametrize(("name", "kind"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_comes_from_torchvision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, kind: str
) -> None:
    calls = []

    class Source:
        classes = ("cat", "dog")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            calls.append((root, train, download))
            self.data = pictures(3 if train else 2, (32, 32)).numpy()
            self.targets = [0, 1, 0][: len(self.data)]

    module = types.ModuleType("torchvision")
    unwanted = types.SimpleNamespace(CIFAR10=None, CIFAR100=None)
    setattr(unwanted, kind, Source)
    module.datasets = unwanted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", module)
    data = load_dataset(name, data_root=tmp_path, download=False)
    assert calls == [(str(tmp_path), True, False), (str(tmp_path), False, False)]
    assert data.train.pixels.shape == (3, 32, 32, 3)
    assert data.train.labels.tolist() == [0, 1, 0]
    assert (data.shift, data.flip, data.mean) == (4, True, PHOTO_MEAN)


def test_real_photographs_meet_their_network(
    shared_data: Path, photographs: Path, tmp_path: Path
) -> None:
    """Class order, channel order and normalisation in one: 88 % of 1,000 test images."""
    from pysoftq.models.build import build_model
    from pysoftq.models.weight_files import load_weights, restore
    from pysoftq.run.evaluation import evaluate

    for half in ("train", "test"):
        (tmp_path / half).symlink_to(photographs / "test")
    data = load_dataset(f"imagefolder:{tmp_path}")
    assert len(data.test) == 1000
    model = build_model("resnet20", 10)
    weights = shared_data / "resnet20-cifar10-jpeg.pt"
    restore(model, load_weights(weights), weights)
    loss, accuracy = evaluate(model, data, data.test)
    assert accuracy == pytest.approx(0.88, abs=0.03)
    assert loss < 0.6
