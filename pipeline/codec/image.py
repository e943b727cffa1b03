"""image/png and image/jpeg: uint8 arrays (C, H, W), unpacked by Pillow.

Channels: grey images (1, 8 or 16 bits) have C = 1, 16 bits rounded to 8 (a pixel v becomes v / 257); all others become
RGB, C = 3. What is transparent is laid over black, so that colours nobody sees are not learnt. Where `settings.shape`
is (1 or 3, H, W), every image is converted to that many channels and resized to H x W (bilinear, antialiased).

Of an animation the first frame counts. EXIF orientation and colour profiles are not applied, as in torchvision.

Legend: C channels, H height, W width
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from pipeline.codec.bare_image import bare_jpeg, bare_png
from pipeline.codec.payload_codec import Payload, PayloadCodec, quoted
from pipeline.codec.plain_image import PlainImage, plain_jpeg, plain_png
from pipeline.sample import BadRecord, DeadLetterReason
from pipeline.settings import InputSettings
from pipeline.user_error import UserError

GREY_MODES = ("1", "L", "I;16")
JPEG_QUALITY = 95


class _ImageCodec(PayloadCodec):
    """What the two formats share."""

    # Pillow's plugin itself, not `Image.open`: that one warns about large images by its own limit before we can look.
    plugin: ClassVar[type[ImageFile]]

    @abstractmethod
    def bare(self, value: bytes) -> bytes:
        """The same image without metadata."""

    @abstractmethod
    def plain(self, bare: bytes) -> PlainImage | None:
        """The same as one of the usual kind; None where it is of another."""

    def decode(self, value: bytes, parameters: Mapping[str, str], settings: InputSettings) -> Payload:
        """1. Drop metadata, 2. read the header, 3. check the size it claims, 4. only then unpack and convert.

        For an image of the usual kind 2 to 4 are shorter (a third less time for small ones); where that failed, they
        are done again by Pillow.
        """
        shape = settings.shape
        if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
            raise BadRecord(DeadLetterReason.WRONG_SHAPE, f"an image, where arrays of shape {shape} are set")
        # 1.
        bare = self.bare(value)
        plain = self.plain(bare)
        if plain is not None and not _shrinks_while_unpacking(plain, shape):
            _check_size(plain.size, settings)
            with suppress(ValueError):
                return Payload(_array(plain.unpacked(), shape), "image")
        # 2.
        try:
            image = self.plugin(BytesIO(bare))
        except MemoryError:
            raise
        except Exception as error:  # on malformed bytes Pillow's parsers raise almost anything
            raise _broken(error) from error
        # 3.
        _check_size(image.size, settings)
        # 4.
        try:
            return Payload(_unpack(image, shape), "image")
        except MemoryError:
            raise
        except Exception as error:  # as above: this is where the packed pixels are read
            raise _broken(error) from error


class PngCodec(_ImageCodec):
    content_types = ("image/png",)
    plugin = PngImageFile

    def bare(self, value: bytes) -> bytes:
        return bare_png(value)

    def plain(self, bare: bytes) -> PlainImage | None:
        return plain_png(bare)


class JpegCodec(_ImageCodec):
    content_types = ("image/jpeg", "image/jpg")  # the second is wrong and common
    plugin = JpegImageFile

    def bare(self, value: bytes) -> bytes:
        return bare_jpeg(value)

    def plain(self, bare: bytes) -> PlainImage | None:
        return plain_jpeg(bare)


def encode_png(x_CHW: npt.NDArray[np.uint8]) -> bytes:
    """Lossless. uint8, C = 1 or 3, or `UserError`."""
    buffer = BytesIO()
    _image_of(x_CHW).save(buffer, format="PNG")
    return buffer.getvalue()


def encode_jpeg(x_CHW: npt.NDArray[np.uint8]) -> bytes:
    """Lossy, at quality 95. uint8, C = 1 or 3, or `UserError`."""
    buffer = BytesIO()
    _image_of(x_CHW).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _image_of(x_CHW: npt.NDArray[np.uint8]) -> Image.Image:
    if x_CHW.dtype != np.uint8 or x_CHW.ndim != 3 or x_CHW.shape[0] not in (1, 3) or x_CHW.size == 0:
        raise UserError(f"an image is uint8 of shape (1 or 3, H, W); got {x_CHW.dtype} of shape {x_CHW.shape}")
    if x_CHW.shape[0] == 1:
        return Image.fromarray(x_CHW[0])
    return Image.fromarray(np.ascontiguousarray(x_CHW.transpose(1, 2, 0)))


def _check_size(size: tuple[int, int], settings: InputSettings) -> None:
    width, height = size
    if width * height > settings.max_image_pixels:
        raise BadRecord(
            DeadLetterReason.IMAGE_TOO_LARGE,
            f"{width} x {height} pixels, where max_image_pixels is {settings.max_image_pixels}",
        )


def _shrinks_while_unpacking(plain: PlainImage, shape: tuple[int, ...] | None) -> bool:
    """Whether Pillow would unpack it at a fraction of its size: see `_unpack`."""
    return shape is not None and min(plain.size[0] // (2 * shape[2]), plain.size[1] // (2 * shape[1])) > 1


def _unpack(image: Image.Image, shape: tuple[int, ...] | None) -> npt.NDArray[np.uint8]:
    if shape is not None and isinstance(image, JpegImageFile):
        # A JPEG unpacks at 1/2, 1/4 or 1/8 for a fraction of the time; at twice the size wanted nothing is lost.
        image.draft(None, (2 * shape[2], 2 * shape[1]))
    return _array(_eight_bits(image), shape)


def _array(image: Image.Image, shape: tuple[int, ...] | None) -> npt.NDArray[np.uint8]:
    """(C, H, W), C-contiguous and writable, of an image that is L or RGB."""
    if shape is not None:
        channels, height, width = shape
        if (image.mode == "L") != (channels == 1):
            image = image.convert("L" if channels == 1 else "RGB")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    channels = 1 if image.mode == "L" else 3
    x_HWC = np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(image.height, image.width, channels)
    return np.array(x_HWC.transpose(2, 0, 1), order="C")  # always a copy: bytes are read-only


def _eight_bits(image: Image.Image) -> Image.Image:
    """As L or RGB."""
    if image.mode == "I;16":
        # 65535 -> 255 and 257 v -> v, rounded; Pillow's own conversion would clip at 255
        return Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    if image.mode in GREY_MODES:
        return image if image.mode == "L" else image.convert("L")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _broken(error: Exception) -> BadRecord:
    return BadRecord(DeadLetterReason.BROKEN_IMAGE, f"{type(error).__name__}: {quoted(str(error))}")
