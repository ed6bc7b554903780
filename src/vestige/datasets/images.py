"""Pictures: digits, MNIST, Fashion-MNIST, CIFAR-10, ORL faces.

Files hold bytes; models want float32 in [0, 1], channels first. The large sets are converted
when rows are read: 60,000 CIFAR-10 pictures would take 737 MB, and an audit reads a few thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vestige.datasets.fetch import Original
from vestige.datasets.files import Arrays, Facts
from vestige.records import Records, Rows


class Pictures:
    """Stored bytes seen as float32 in [0, 1] with channels first; converted when read.

    Args:
        pixels: (n, height, width) or (n, height, width, channels) uint8, may be memory-mapped.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, pixels: NDArray[Any]) -> None:
        with_channel = pixels if pixels.ndim == 4 else pixels[..., None]
        self._pixels = np.moveaxis(np.asarray(with_channel), -1, 1)
        self.shape: tuple[int, ...] = self._pixels.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[np.float32]:
        bytes_read = self._pixels[index]
        scaled: NDArray[np.float32]
        scaled = np.divide(bytes_read, np.float32(255), dtype=np.float32, order="C")
        return scaled

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)


# --- digits (Alpaydin and Kaynak 1998; scikit-learn's) -------------------------------------------

DIGITS_FACTS = Facts(
    shape=(1_797, 64), counts=(178, 182, 177, 183, 181, 182, 181, 179, 174, 180), total=561_718
)
DIGITS_CLASSES = tuple(str(k) for k in range(10))


def builtin_digits() -> Arrays:
    """scikit-learn's `load_digits`: (1797, 64) grey values 0..16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Arrays(bunch.data.astype(np.uint8), bunch.target.astype(np.int64))


def digits_records(arrays: Arrays) -> Records:
    """8x8 pictures as rows, (1797, 64) float32 in [0, 1]."""
    x = np.asarray(arrays.x).astype(np.float32) / np.float32(16)
    return Records.from_arrays(x, arrays.y, classes=DIGITS_CLASSES)


# --- MNIST (LeCun, Cortes, Burges) ---------------------------------------------------------------

MNIST_CLASSES = DIGITS_CLASSES
MNIST_FACTS = Facts(
    shape=(70_000, 28, 28),
    counts=(6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958),
    total=1_832_221_745,
)
_MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# pictures and labels for training, then for testing
_IDX_FILES = (
    ("train-images-idx3-ubyte", 47_040_016),
    ("train-labels-idx1-ubyte", 60_008),
    ("t10k-images-idx3-ubyte", 7_840_016),
    ("t10k-labels-idx1-ubyte", 10_008),
)


def _idx_originals(
    mirrors: tuple[str, ...], limit: int, *digests: str, package: str = ""
) -> tuple[Original, ...]:
    return tuple(
        Original(
            name=name,
            size=size,
            sha256=sha256,
            urls=tuple(f"{mirror}{name}.gz" for mirror in mirrors),
            limit=limit,
            local=f"/usr/share/datasets/{package}/{name}.gz" if package else "",
        )
        for (name, size), sha256 in zip(_IDX_FILES, digests, strict=True)
    )


MNIST_ORIGINALS = _idx_originals(
    _MNIST_MIRRORS,
    20_000_000,
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
)


def pack_idx(originals: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """The four idx files of a set as one, training rows first."""
    # an idx file is a header of 16 (pictures) or 8 (labels) bytes, then one byte a value
    parts = [np.frombuffer(originals[name], dtype=np.uint8) for name, _ in _IDX_FILES]
    x = np.concatenate([parts[0][16:], parts[2][16:]]).reshape(-1, 28, 28)
    y = np.concatenate([parts[1][8:], parts[3][8:]]).astype(np.int64)
    return {"x": x, "y": y, "split": (np.arange(len(y)) >= 60_000).astype(np.uint8)}


def mnist_records(arrays: Arrays) -> Records:
    """(70000, 1, 28, 28) float32 in [0, 1], converted when read; training rows first."""
    return Records.from_arrays(Rows([Pictures(arrays.x)]), arrays.y, classes=MNIST_CLASSES)


# --- Fashion-MNIST (Xiao, Rasul, Vollgraf 2017) --------------------------------------------------

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FASHION_FACTS = Facts(shape=(70_000, 28, 28), counts=(7_000,) * 10, total=4_004_583_251)
FASHION_ORIGINALS = _idx_originals(
    ("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",),
    40_000_000,
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    package="fashion-mnist",
)


def fashion_records(arrays: Arrays) -> Records:
    """(70000, 1, 28, 28) float32 in [0, 1], converted when read; training rows first."""
    return Records.from_arrays(Rows([Pictures(arrays.x)]), arrays.y, classes=FASHION_CLASSES)


# --- CIFAR-10 (Krizhevsky 2009) ------------------------------------------------------------------

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
CIFAR10_FACTS = Facts(shape=(60_000, 32, 32, 3), counts=(6_000,) * 10, total=22_274_057_637)
# the binary release: the other one is a pickle
_CIFAR10_BATCHES = (
    ("data_batch_1.bin", "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
    ("data_batch_2.bin", "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
    ("data_batch_3.bin", "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
    ("data_batch_4.bin", "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
    ("data_batch_5.bin", "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
    ("test_batch.bin", "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
)
CIFAR10_ORIGINALS = tuple(
    Original(
        name=name,
        size=30_730_000,
        sha256=sha256,
        urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    )
    for name, sha256 in _CIFAR10_BATCHES
)


def pack_cifar10(originals: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """The six batches in their order, (60000, 32, 32, 3) uint8."""
    x = np.empty((60_000, 32, 32, 3), dtype=np.uint8)
    y = np.empty(60_000, dtype=np.int64)
    for k, (name, _) in enumerate(_CIFAR10_BATCHES):
        # a record is its label, then 1,024 red, green and blue bytes
        rows = np.frombuffer(originals[name], dtype=np.uint8).reshape(10_000, 3_073)
        here = slice(k * 10_000, (k + 1) * 10_000)
        y[here] = rows[:, 0]
        x[here] = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return {"x": x, "y": y, "split": (np.arange(60_000) >= 50_000).astype(np.uint8)}


def cifar10_records(arrays: Arrays) -> Records:
    """(60000, 3, 32, 32) float32 in [0, 1], converted when read; training rows first."""
    return Records.from_arrays(Rows([Pictures(arrays.x)]), arrays.y, classes=CIFAR10_CLASSES)


# --- ORL / AT&T faces (Samaria and Harter 1994) --------------------------------------------------

ORL_CLASSES = tuple(f"s{k}" for k in range(1, 41))
ORL_FACTS = Facts(shape=(400, 112, 92), counts=(10,) * 40, total=464_221_104)
_PGM_HEADER = b"P5\n92 112\n255\n"
ORL_ORIGINALS = (
    Original(
        name="orl_faces",
        size=400 * (len(_PGM_HEADER) + 112 * 92),
        sha256="d81dc0ce1b7cae73897b46ab3d4d0ee2d1ff72f033819ec7c2a184dbba14a58f",
        urls=(
            "https://www.cl.cam.ac.uk/research/dtg/attarchive/pub/data/att_faces.zip",
            "https://github.com/hakawa-bernardi/orl-face-recognition-pca-svm/archive/"
            "3edc842bc89bddbd3d6bcf12d23a4f9c2a493883.zip",
        ),
        members=tuple(f"s{person}/{k}.pgm" for person in range(1, 41) for k in range(1, 11)),
        limit=20_000_000,
    ),
)


def pack_orl_faces(originals: Mapping[str, bytes]) -> dict[str, NDArray[Any]]:
    """Ten pictures a person, persons s1 to s40 in order, (400, 112, 92) uint8."""
    files = np.frombuffer(originals["orl_faces"], dtype=np.uint8).reshape(400, -1)
    x = np.ascontiguousarray(files[:, len(_PGM_HEADER) :]).reshape(400, 112, 92)
    return {"x": x, "y": np.repeat(np.arange(40, dtype=np.int64), 10)}


def orl_records(arrays: Arrays) -> Records:
    """(400, 1, 112, 92) float32 in [0, 1]; 40 persons, 10 pictures each."""
    return Records.from_arrays(Pictures(arrays.x)[:], arrays.y, classes=ORL_CLASSES)
