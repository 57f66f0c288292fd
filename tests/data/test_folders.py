"""Folders of images: classes, sizes, transparency, splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyro_ssvae import SemiSupervisedData
from pyro_ssvae.data.folders import has_colour, read_folder


def write(path: Path, colour: tuple[int, ...], size: tuple[int, int] = (10, 10), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


def test_classes_come_from_subfolders_or_names(tmp_path: Path) -> None:
    write(tmp_path / "a" / "dogs" / "1.png", (255, 0, 0))
    write(tmp_path / "a" / "cats" / "2.jpg", (0, 255, 0))
    write(tmp_path / "a" / "cats" / "deeper" / "3.png", (0, 0, 255))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    images = read_folder(tmp_path / "a", 8)
    assert images.class_names == ("cats", "dogs")
    assert images.y.tolist() == [0, 0, 1]
    assert images.x.shape == (3, 3, 8, 8)
    assert images.x[2, :, 4, 4].tolist() == [255, 0, 0]
    write(tmp_path / "b" / "7_first.png", (9, 9, 9))
    write(tmp_path / "b" / "3_second_x.bmp", (50, 50, 50))
    named = read_folder(tmp_path / "b", 4)
    assert (named.class_names, named.y.tolist()) == (("3", "7"), [0, 1])
    assert named.x.shape == (2, 1, 4, 4)  # all grey
    assert (has_colour(tmp_path / "a"), has_colour(tmp_path / "b")) == (True, False)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    write(tmp_path / "clear.png", (255, 0, 0, 0), mode="RGBA")
    write(tmp_path / "half.png", (255, 0, 0, 128), mode="RGBA")
    x = read_folder(tmp_path, 6).x
    assert x[0, :, 3, 3].tolist() == [255, 255, 255]
    assert x[1, :, 3, 3].tolist() == pytest.approx([255, 127, 127], abs=1)
    assert read_folder(tmp_path, 6).y.tolist() == [-1, -1]


def test_images_are_cropped_to_the_central_square(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    x = read_folder(tmp_path, 10).x
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


def test_other_formats_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match=r"x\.png cannot be read"):
        read_folder(tmp_path, 8)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_folder(tmp_path / "nowhere", 8)
    with pytest.raises(ValueError, match="holds no image"):
        read_folder(tmp_path, 8)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ValueError, match=r"broken\.png cannot be read"):
        read_folder(tmp_path, 8)
    (tmp_path / "broken.png").unlink()
    write(tmp_path / "x.png", (1, 2, 3))
    with pytest.raises(ValueError, match="image_size=0"):
        read_folder(tmp_path, 0)
    with pytest.raises(ValueError, match="leave none to train on"):
        SemiSupervisedData.from_folder(tmp_path, image_size=4)
    write(tmp_path / "cats" / "y.png", (1, 2, 3))
    with pytest.raises(ValueError, match="1 images with a class and 1 without"):
        SemiSupervisedData.from_folder(tmp_path, image_size=4)
