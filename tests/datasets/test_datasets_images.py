from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
from real_data import needs
from sklearn.datasets import load_digits

from vestige import datasets
from vestige.datasets import images
from vestige.datasets.files import Arrays
from vestige.records import Records, concatenate, split


def naive(pixels: np.ndarray) -> np.ndarray:
    """Channels first and divided by 255, one value at a time."""
    with_channel = pixels if pixels.ndim == 4 else pixels[..., None]
    n, h, w, c = with_channel.shape
    out = np.empty((n, c, h, w), dtype=np.float32)
    for i, k, r, q in np.ndindex(n, c, h, w):
        out[i, k, r, q] = np.float32(with_channel[i, r, q, k]) / np.float32(255)
    return out


@pytest.mark.parametrize("shape", [(7, 5, 4), (7, 5, 4, 3)])
def test_pictures_are_converted_when_read(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pictures, expected = images.Pictures(pixels), naive(pixels)
    assert pictures.shape == expected.shape and len(pictures) == 7
    for index in (slice(None), slice(2, 5), [3, 0, 3], np.arange(7) % 2 == 0, 4):
        got = pictures[index]
        np.testing.assert_array_equal(got, expected[index])
        assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_array_equal(np.asarray(pictures), expected)


def test_records_of_pictures_slice_join_and_hash_like_arrays() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)
    y = np.arange(20) % 10
    lazy = images.cifar10_records(Arrays(pixels, y))
    eager = Records.from_arrays(naive(pixels), y, classes=images.CIFAR10_CLASSES)
    assert lazy.digest() == eager.digest()
    np.testing.assert_array_equal(lazy.content_hash(), eager.content_hash())
    some = np.array([5, 19, 0])
    np.testing.assert_array_equal(lazy[some].x[:], eager[some].x)
    both = concatenate(lazy[3:5], lazy[:2])
    np.testing.assert_array_equal(both.x[:], eager.x[[3, 4, 0, 1]])
    drawn = split(lazy, 6, 6, 4, seed=2)
    np.testing.assert_array_equal(drawn.members.x[:], eager.x[drawn.members.ids])


def test_digits_are_scikit_learns_over_16() -> None:
    records, bunch = datasets.load("digits"), load_digits()
    np.testing.assert_array_equal(records.x, (bunch.data / 16).astype(np.float32))
    np.testing.assert_array_equal(records.y, bunch.target)
    assert records.classes == tuple("0123456789")
    arrays = images.builtin_digits()
    assert arrays.x.shape == images.DIGITS_FACTS.shape
    assert int(arrays.x.sum(dtype=np.int64)) == images.DIGITS_FACTS.total
    assert tuple(np.bincount(arrays.y).tolist()) == images.DIGITS_FACTS.counts


def test_mnist_is_packed_training_rows_first() -> None:
    x = np.random.default_rng(2).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    y = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
    packed = images.pack_idx(idx(x[:3], y[:3], x[3:], y[3:]))
    np.testing.assert_array_equal(packed["x"], x)
    np.testing.assert_array_equal(packed["y"], y)


def idx(x: np.ndarray, y: np.ndarray, xt: np.ndarray, yt: np.ndarray) -> dict[str, bytes]:
    """The four files of the release, as LeCun describes them."""
    names = [original.name for original in images.MNIST_ORIGINALS]
    files = []
    for pictures, labels in ((x, y), (xt, yt)):
        files.append(struct.pack(">4I", 0x803, *pictures.shape) + pictures.tobytes())
        files.append(struct.pack(">2I", 0x801, len(labels)) + labels.astype(np.uint8).tobytes())
    return dict(zip(names, files, strict=True))


@needs("mnist")
def test_mnist_has_its_published_numbers_and_stays_on_disk() -> None:
    records, raw = datasets.load("mnist"), datasets.raw("mnist")
    assert isinstance(raw.x, np.memmap)
    assert records.x.shape == (70_000, 1, 28, 28) and records.x.dtype == np.float32
    assert raw.split is not None and (raw.split == 0).sum() == 60_000
    # mean and deviation of the training pictures, as everyone normalizes by
    n, mean, square = 60_000 * 784, 0.0, 0.0
    for start in range(0, 60_000, 5_000):
        part = raw.x[start : start + 5_000] / 255
        mean, square = mean + part.sum() / n, square + (part**2).sum() / n
    deviation = np.sqrt(square - mean**2)
    assert (round(mean, 4), round(deviation, 4)) == (0.1307, 0.3081)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(records.y[:60_000]).tolist() == counts
    np.testing.assert_array_equal(records[[7]].x[0][0], raw.x[7] / np.float32(255))


@needs("mnist")
def test_the_pins_of_mnist_are_those_of_the_released_files() -> None:
    raw = datasets.raw("mnist")
    files = idx(raw.x[:60_000], raw.y[:60_000], raw.x[60_000:], raw.y[60_000:])
    for original in images.MNIST_ORIGINALS:
        data = files[original.name]
        assert len(data) == original.size
        assert hashlib.sha256(data).hexdigest() == original.sha256
    packed = images.pack_idx(files)
    for key, expected in (("x", raw.x), ("y", raw.y), ("split", raw.split)):
        np.testing.assert_array_equal(packed[key], expected)


@needs("fashion_mnist")
def test_fashion_mnist_is_what_was_released() -> None:
    records, raw = datasets.load("fashion_mnist"), datasets.raw("fashion_mnist")
    assert isinstance(raw.x, np.memmap) and records.x.shape == (70_000, 1, 28, 28)
    assert np.bincount(records.y[:60_000]).tolist() == [6_000] * 10
    # as everyone normalizes by
    assert round(float(raw.x[:60_000].mean(dtype=np.float64)) / 255, 4) == 0.2860
    assert records.classes[records.y[0]] == "Ankle boot"
    files = idx(raw.x[:60_000], raw.y[:60_000], raw.x[60_000:], raw.y[60_000:])
    for original in images.FASHION_ORIGINALS:
        assert hashlib.sha256(files[original.name]).hexdigest() == original.sha256


@needs("cifar10")
def test_cifar10_has_its_published_numbers_and_stays_on_disk() -> None:
    records, raw = datasets.load("cifar10"), datasets.raw("cifar10")
    assert isinstance(raw.x, np.memmap)
    assert records.x.shape == (60_000, 3, 32, 32)
    assert raw.split is not None and (raw.split == 0).sum() == 50_000
    means = raw.x[:50_000:10].mean(axis=(0, 1, 2)) / 255
    # every tenth picture: within 4 standard errors of 0.25 / sqrt(5,000), as pixels of a picture
    # move together
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=0.0142)
    # the first picture of the release is a frog
    assert records.classes[records.y[0]] == "frog"
    np.testing.assert_array_equal(records[[0]].x[0][2], raw.x[0, :, :, 2] / np.float32(255))


@needs("cifar10")
@pytest.mark.slow
def test_the_pins_of_cifar10_are_those_of_the_released_batches() -> None:
    raw = datasets.raw("cifar10")
    batches = {}
    for k, original in enumerate(images.CIFAR10_ORIGINALS):
        here = slice(k * 10_000, (k + 1) * 10_000)
        planes = raw.x[here].transpose(0, 3, 1, 2).reshape(10_000, -1)
        data = np.hstack([raw.y[here, None].astype(np.uint8), planes]).tobytes()
        assert len(data) == original.size
        assert hashlib.sha256(data).hexdigest() == original.sha256
        batches[original.name] = data
    packed = images.pack_cifar10(batches)
    for key, expected in (("x", raw.x), ("y", raw.y), ("split", raw.split)):
        np.testing.assert_array_equal(packed[key], expected)


@needs("orl_faces")
def test_orl_faces_are_forty_people_and_the_pin_is_that_of_the_files() -> None:
    records, raw = datasets.load("orl_faces"), datasets.raw("orl_faces")
    assert records.x.shape == (400, 1, 112, 92)
    assert round(float(raw.x.mean()), 2) == 112.63
    data = b"".join(images._PGM_HEADER + picture.tobytes() for picture in raw.x)
    (original,) = images.ORL_ORIGINALS
    assert len(data) == original.size
    assert hashlib.sha256(data).hexdigest() == original.sha256
    packed = images.pack_orl_faces({"orl_faces": data})
    np.testing.assert_array_equal(packed["x"], raw.x)
    np.testing.assert_array_equal(packed["y"], raw.y)
