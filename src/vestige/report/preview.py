"""Small pictures and rows of records, for the list of exposed ones."""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from vestige.errors import InvalidInput
from vestige.report.report import ImagePreview, RowPreview

__all__ = ["image_preview", "row_preview"]

MAX_SIDE = 64
"""Larger pictures are thinned out: fifty of them still have to fit in one light page."""


def image_preview(
    pixels: npt.ArrayLike, *, low: float | None = None, high: float | None = None
) -> ImagePreview:
    """A picture of one record.

    Args:
        pixels: (h, w), (h, w, 1 or 3) or (1 or 3, h, w), finite.
        low, high: what is drawn black and white; the extremes of `pixels` by default.

    >>> image_preview(np.eye(8)).width
    8
    """
    array = _channels_last(np.asarray(pixels, dtype=np.float64))
    step = -(-max(array.shape[:2]) // MAX_SIDE)
    array = array[::step, ::step]
    low = float(array.min()) if low is None else low
    high = float(array.max()) if high is None else high
    scaled = (array - low) / ((high - low) or 1.0)
    png = _png(np.round(255 * np.clip(scaled, 0, 1)).astype(np.uint8))
    height, width = array.shape[:2]
    return ImagePreview(png=base64.b64encode(png).decode(), width=width, height=height)


def row_preview(
    values: npt.ArrayLike | Sequence[object], columns: Sequence[str] = (), *, limit: int = 12
) -> RowPreview:
    """The first `limit` columns of one record, as text.

    >>> row_preview([39.0, 1.5], ["age", "height"]).values
    {'age': '39', 'height': '1.5'}
    """
    items = np.asarray(values, dtype=object).ravel()[:limit].tolist()
    names = columns or [f"x{i}" for i in range(len(items))]
    shown: Mapping[str, str] = {
        str(name): _text(item) for name, item in zip(names, items, strict=False)
    }
    return RowPreview(values=shown)


def _text(item: object) -> str:
    return f"{item:.4g}" if isinstance(item, float | np.floating) else f"{item}"[:40]


def _channels_last(pixels: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(h, w, 1 or 3)."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3) and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, 2)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        raise InvalidInput(
            "expected a picture of shape (h, w), (h, w, 3) or (3, h, w), got one of shape "
            f"{pixels.shape}"
        )
    if not np.isfinite(pixels).all():
        raise InvalidInput("expected a picture of finite numbers, got NaN or infinity")
    return pixels


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """(h, w, 1 or 3) as a PNG file: eight bits, no filter, no interlacing, no metadata."""
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    raw = np.hstack([np.zeros((height, 1), np.uint8), rows]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
