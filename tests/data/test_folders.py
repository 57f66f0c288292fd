"""Folders of images: classes, sizes, transparency, splits."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.data.images import has_colour


def write(path: Path, colour: tuple[int, ...] | int, size: tuple[int, int] = (10, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def read(path: Path, image_size: int = 4, **options: Any) -> SemiSupervisedData:
    """All images of a folder, none held out."""
    return SemiSupervisedData.from_folder(path, image_size=image_size, num_validation=0, num_test=0, **options)


def fill(root: Path, *paths: str) -> Path:
    """Write images, whose brightness is the number of the path."""
    for number, path in enumerate(paths):
        write(root / path, (number, number, number))
    return root


def test_classes_are_subfolders(tmp_path: Path) -> None:
    write(tmp_path / "a" / "dogs" / "1.png", (255, 0, 0))
    write(tmp_path / "a" / "cats" / "2.jpg", (0, 255, 0))
    write(tmp_path / "a" / "cats" / "deeper" / "3.PNG", (0, 0, 255))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    data = read(tmp_path / "a", 8)
    assert (data.name, data.class_names, data.y.tolist()) == ("a", ("cats", "dogs"), [0, 0, 1])
    assert data.x.shape == (3, 3, 8, 8)
    assert data.x[2, :, 4, 4].tolist() == [255, 0, 0]


def test_classes_in_names_are_read_on_request(tmp_path: Path) -> None:
    fill(tmp_path, "3_second_x.bmp", "7_first.png", "_none.png")
    named = read(tmp_path, classes_in_names=True)
    assert (named.class_names, named.y.tolist()) == (("3", "7"), [0, 1, -1])
    assert named.x.shape == (3, 1, 4, 4)  # all grey
    assert read(tmp_path).num_classes is None
    assert not has_colour(tmp_path)
    write(tmp_path / "colour.png", (1, 2, 3))
    assert has_colour(tmp_path)


@pytest.mark.parametrize(
    "unlabelled",
    ["unlabelled", "Unlabeled", "unsup", "unlabelled_images", "no-label", "train/unlabelled", ".", "train"],
)
def test_unlabelled_images_beside_classes(tmp_path: Path, unlabelled: str) -> None:
    classes = "train/" if unlabelled.startswith("train") else ""
    fill(tmp_path, f"{classes}cats/0.png", f"{classes}dogs/1.png", f"{unlabelled}/2.png", f"{unlabelled}/x_3.png")
    data = read(tmp_path)
    assert (data.class_names, data.num_classes) == (("cats", "dogs"), 2)
    labels = dict(zip(data.x[:, 0, 0, 0].tolist(), data.y.tolist(), strict=True))
    assert labels == {0: 0, 1: 1, 2: -1, 3: -1}


@pytest.mark.parametrize(("train", "val", "test"), [("train", "val", "test"), ("Training", "validation", "TEST")])
def test_folders_of_parts(tmp_path: Path, train: str, val: str, test: str) -> None:
    names = [f"{train}/a/0.png", f"{train}/b/1.png", f"{train}/2.png", f"{val}/b/3.png", f"{test}/a/4.png"]
    fill(tmp_path, *names, f"{test}/unlabelled/5.png", ".hidden/c/6.png", "__MACOSX/d/7.png", f"{train}/a/._0.png")
    data = SemiSupervisedData.from_folder(tmp_path, image_size=4)
    assert data.class_names == ("a", "b")
    assert (data.x[:, 0, 0, 0].tolist(), data.y.tolist()) == ([2, 0, 1], [-1, 0, 1])
    assert (data.x_validation[:, 0, 0, 0].tolist(), data.y_validation.tolist()) == ([3], [1])
    assert (data.x_test[:, 0, 0, 0].tolist(), data.y_test.tolist()) == ([4, 5], [0, -1])
    with pytest.raises(ValueError, match="num_test=2: there is a folder of test images already"):
        SemiSupervisedData.from_folder(tmp_path, image_size=4, num_test=2)


def test_test_images_beside_classes(tmp_path: Path) -> None:
    data = read(fill(tmp_path, "a/0.png", "b/1.png", "test/a/2.png", "test/3.png"))
    assert (data.class_names, data.y.tolist(), data.y_test.tolist()) == (("a", "b"), [0, 1], [-1, 0])
    fill(tmp_path, "test/bird/4.png")
    with pytest.raises(ValueError, match="test holds the class 'bird', which is none of a, b"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["nan", "-1", "NaT"])
def test_classes_that_look_unlabelled_are_refused(tmp_path: Path, name: str) -> None:
    fill(tmp_path, "a/0.png", "b/1.png", f"{name}/2.png")
    with pytest.raises(ValueError, match=f"images of the class '{name}', a word .* rename"):
        read(tmp_path)
    with pytest.raises(ValueError, match=f"images of the class '{name}'"):
        read(fill(tmp_path / "names", "a_0.png", "b_1.png", f"{name}_2.png"), classes_in_names=True)


def test_train_may_be_a_vehicle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the folder train, without folders of classes, beside the classes car, ship"):
        read(fill(tmp_path, "car/0.png", "ship/1.png", "train/2.png"))


def test_a_single_folder_is_no_class(tmp_path: Path) -> None:
    for number, path in enumerate(("cats", "train/cats", "archive/photos/cats")):
        folder = fill(tmp_path / f"one{number}", f"{path}/0.png", f"{path}/1.png")
        with pytest.warns(UserWarning, match=rf"{folder} holds only one folder of images, cats, which") as caught:
            data = read(folder)
        assert (data.num_classes, data.num_unlabelled, caught[0].filename) == (None, 2, __file__)
    for number, path in enumerate(("train", "unlabelled", ".")):  # without a warning
        assert read(fill(tmp_path / f"none{number}", f"{path}/0.png", f"{path}/1.png")).num_classes is None
    nested = read(fill(tmp_path / "two", "archive/photos/a/0.png", "archive/photos/b/1.png"))
    assert (nested.name, nested.class_names) == ("two", ("a", "b"))


def test_held_out_images_are_drawn_among_the_labelled(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{'ab'[n % 2]}/{n:02}.png" for n in range(20)), *(f"unlabelled/{n}.png" for n in range(30)))
    data = SemiSupervisedData.from_folder(tmp_path, image_size=4)
    assert (data.num_labelled, data.num_unlabelled) == (16, 30)
    assert (len(data.known_validation[1]), int((data.y_test >= 0).sum())) == (2, 2)


def test_held_out_images_are_stratified_by_class(tmp_path: Path) -> None:
    names = ["a"] * 50 + ["b"] * 30 + ["c"] * 20 + ["d"]
    fill(tmp_path, *(f"{name}/{number:03}.png" for number, name in enumerate(names)))
    with pytest.warns(UserWarning, match="Only one example has the label d: is it mistyped"):
        data = SemiSupervisedData.from_folder(tmp_path, image_size=4, seed=2)
    assert [y.bincount(minlength=4).tolist() for y in (data.y, data.y_validation, data.y_test)] == [
        [40, 24, 16, 1],
        [5, 3, 2, 0],
        [5, 3, 2, 0],
    ]
    with pytest.warns(UserWarning, match="Only one example"):
        other = SemiSupervisedData.from_folder(tmp_path, image_size=4, num_validation=90, num_test=7, seed=3)
    assert other.y.tolist() == [0, 1, 2, 3]  # one of each class is left for training
    assert not data.x_test.equal(other.x_test)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    write(tmp_path / "clear.png", (255, 0, 0, 0), mode="RGBA")
    write(tmp_path / "half.png", (255, 0, 0, 128), mode="RGBA")
    x = read(tmp_path, 6).x
    assert x[0, :, 3, 3].tolist() == [255, 255, 255]
    assert x[1, :, 3, 3].tolist() == pytest.approx([255, 127, 127], abs=1)


def test_depths_and_modes(tmp_path: Path) -> None:
    write(tmp_path / "1.tif", 100, mode="L")
    Image.fromarray(np.full((9, 9), 100 * 257, dtype=np.uint16)).save(tmp_path / "2.png")
    Image.fromarray(np.full((9, 9), 100 * 257, dtype=np.uint16)).save(tmp_path / "3.tif")
    write(tmp_path / "4.gif", 100, mode="L")
    write(tmp_path / "5.png", (100, 255), mode="LA")
    write(tmp_path / "6.tif", (0, 0, 0, 155), mode="CMYK")
    write(tmp_path / "7.png", 1, mode="1")
    write(tmp_path / "8.webp", (100, 100, 100))
    x = read(tmp_path).x
    assert x[:, 0, 2, 2].tolist() == pytest.approx([100] * 6 + [255, 100], abs=1)


@pytest.mark.parametrize("on_disk", [False, True])
def test_images_of_16_bits_that_use_few_of_them(tmp_path: Path, on_disk: bool) -> None:
    for number, value in enumerate((100, 3000)):
        Image.fromarray(np.full((9, 9), value, dtype=np.uint16)).save(tmp_path / f"{number}.tif")
    write(tmp_path / "2.png", 250, mode="L")
    text = r"The images of 16 bits in .* \(2\) hold no value above 3,000 of 65,535, so that at most 12 of .* by 16\."
    with pytest.warns(UserWarning, match=text) as caught:
        data = read(tmp_path, on_disk=on_disk)
    assert caught[0].filename == __file__
    assert data.x[:3][:, 0, 2, 2].tolist() == [0, 11, 250]
    Image.fromarray(np.full((9, 9), 16_384, dtype=np.uint16)).save(tmp_path / "3.png")
    read(tmp_path, on_disk=on_disk)


def test_coloured_images_of_16_bits(tmp_path: Path) -> None:
    """The high bytes differ, as in a file of 12 bits; Pillow does not write such files."""
    colours = b"".join(b"\0" + b"\x0f\xff\x05\x00\x02\x00" * 4 for _ in range(4))
    parts = {b"IHDR": struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0), b"IDAT": zlib.compress(colours), b"IEND": b""}
    chunks = (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts.items()
    )
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.warns(UserWarning, match=r"no value above 4,095 .* If their depth is 12 bits"):
        data = read(tmp_path)
    assert data.x[0, :, 2, 2].tolist() == [15, 5, 2]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_32_bits_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.full((9, 9), 200, dtype=dtype)).save(tmp_path / "1.tif")
    with pytest.raises(ValueError, match=r"1\.tif \(values of 32 bits, or signed ones, whose range is unknown"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "depth"),
    [("jpg", np.uint8), ("webp", np.uint8), *((suffix, d) for suffix in ("png", "tif") for d in (np.uint8, np.uint16))],
)
def test_images_are_turned_by_their_orientation(tmp_path: Path, suffix: str, depth: type) -> None:
    rows = np.linspace(0.1, 1.0, 12)[:, None] * np.ones(8) * np.iinfo(depth).max  # dark above, bright below
    for turned in (1, 3, 6, 8):
        image = Image.fromarray(rows.astype(depth))
        (exif := image.getexif())[ExifTags.Base.Orientation] = turned
        image.save(tmp_path / f"{turned}.{suffix}", exif=exif)
    x = read(tmp_path, 8).x[:, 0].int()
    down, right = x[:, -1, 4] - x[:, 0, 4], x[:, 4, -1] - x[:, 4, 0]
    assert (down.sign() * (down.abs() > 50)).tolist() == [1, -1, 0, 0]
    assert (right.sign() * (right.abs() > 50)).tolist() == [0, 0, -1, 1]


def test_damaged_orientation_is_left_out(tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 100, dtype=np.uint8)).save(tmp_path / "1.png", exif=b"Exif\0\0damaged")
    assert read(tmp_path).x[0, 0, 2, 2] == 100


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_only_the_first_page_is_read(tmp_path: Path, suffix: str, on_disk: bool) -> None:
    pages = [Image.new("L", (9, 9), brightness) for brightness in (50, 100, 200)]
    write(tmp_path / "0.png", 50, mode="L")
    for number in (1, 2):
        pages[0].save(tmp_path / f"{number}.{suffix}", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match=rf"1\.{suffix} has 3 pages or frames, of which only the first") as caught:
        data = read(tmp_path, on_disk=on_disk)
    assert (len(caught), caught[0].filename) == (1, __file__)
    assert data.x[:3].flatten(1)[:, 5].tolist() == pytest.approx([50] * 3, abs=1)


def test_images_are_cropped_to_the_central_square(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    x = read(tmp_path, 10).x
    assert x.shape == (1, 1, 10, 10)
    assert int(x.min()) == 200


def test_splits(tmp_path: Path) -> None:
    for number in range(40):
        write(tmp_path / f"c{number % 2}" / f"{number:02}.png", (number, 2 * number, 3 * number))
    data = SemiSupervisedData.from_folder(tmp_path, image_size=5, num_labels=6, seed=1)
    assert (len(data.x), len(data.x_validation), len(data.x_test)) == (32, 4, 4)
    assert (data.num_labelled, data.num_classes, data.class_names) == (6, 2, ("c0", "c1"))
    assert data.event_shape == (3, 5, 5)
    seen = [int(image[0, 0, 0]) for part in (data.x, data.x_validation, data.x_test) for image in part]
    assert sorted(seen) == list(range(40))
    again = SemiSupervisedData.from_folder(tmp_path, image_size=5, num_labels=6, seed=1)
    assert again.x.equal(data.x)
    assert again.y.equal(data.y)
    labelled = data.labelled_index
    assert data.y[labelled].tolist() == [int(image[0, 0, 0]) % 2 for image in data.x[labelled]]


def test_images_without_classes_are_data_without_labels(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / f"{number:02}.png", (number, 2 * number, 3 * number))
    data = SemiSupervisedData.from_folder(tmp_path, image_size=5, num_test=3)
    assert (data.num_labelled, len(data.x_test), len(data.x)) == (0, 3, 15)
    assert (data.num_classes, data.class_names, data.y_test.tolist()) == (None, (), [-1] * 3)


def test_images_that_cannot_be_read_are_named_or_left_out(tmp_path: Path) -> None:
    fill(tmp_path, "a/0.png", "b/1.png", "a/cut.png")
    (tmp_path / "a" / "cut.png").write_bytes((tmp_path / "a" / "cut.png").read_bytes()[:45])
    (tmp_path / "b" / "empty.jpg").touch()
    (tmp_path / "b" / "program.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n")
    write(tmp_path / "b" / "long.png", 0, size=(1, 60_000), mode="L")
    write(tmp_path / "b" / "vast.png", 0, size=(13_000, 13_000), mode="1")
    with pytest.raises(ValueError, match=r"5 of 7 images in .* cannot be read: a/cut\.png") as caught:
        read(tmp_path)
    for text in (
        "b/empty.jpg (no image",
        "b/program.png (no image",
        "1 x 60000 pixels",
        "13000 x 13000 pixels; at most",
    ):
        assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=r"5 of 7 images .*a/cut\.png.*left out"):
        data = read(tmp_path, on_error="skip")
    assert (data.x[:, 0, 0, 0].tolist(), data.y.tolist()) == ([0, 1], [0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"path": "nowhere"}, FileNotFoundError, "nowhere does not exist; a folder of images is needed"),
        ({"path": None}, TypeError, "path=None is of type NoneType"),
        ({"path": ""}, ValueError, "path is empty"),
        ({"image_size": 0}, ValueError, "image_size=0"),
        ({"image_size": 4.0}, TypeError, "image_size=4.0 is of type float"),
        ({"image_size": 10**7}, ValueError, "2 images of 10000000 x 10000000 pixels would take .* GB"),
        ({"num_test": True}, TypeError, "num_test=True is of type bool"),
        ({"num_test": -1}, ValueError, "num_test=-1 is too small"),
        ({"num_validation": 1, "num_test": 1}, ValueError, "= 2 of 2 examples leave none to train on"),
        ({"num_labels": 1.5}, TypeError, "num_labels=1.5 is of type float"),
        ({"seed": "0"}, TypeError, "seed='0' is of type str"),
        ({"balanced": 1}, TypeError, "balanced=1 is of type int"),
        ({"classes_in_names": "yes"}, TypeError, "classes_in_names='yes' is of type str"),
        ({"on_error": "ignore"}, ValueError, "on_error='ignore' must be one of raise, skip"),
    ],
)
def test_arguments_refused(tmp_path: Path, arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    fill(tmp_path, "a/0.png", "b/1.png")
    defaults = {"path": tmp_path, "image_size": 4, "num_validation": 0, "num_test": 0}
    with pytest.raises(error, match=text):
        SemiSupervisedData.from_folder(**(defaults | arguments))


def test_no_image(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds no image; looked for \.bmp"):
        read(tmp_path)


def test_folders_and_images_may_be_symbolic_links(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "b/1.png", "b/2.png")
    photos = fill(tmp_path / "photos", "a/0.png", "a/1.png")
    (photos / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (photos / "b" / "back").symlink_to(photos)
    (photos / "again").symlink_to(photos / "a")
    data = read(photos)
    assert (data.class_names, data.y.tolist()) == (("a", "b"), [0, 0, 1, 1])
