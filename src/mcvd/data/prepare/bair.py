"""BAIR robot pushing as downloaded: softmotion30_44k/{train,test}/*.tfrecords, read without TensorFlow.

A TFRecord file is a sequence of records: 8 bytes length (little endian), 4 bytes checksum of these, the data, 4 bytes
checksum of the data. Each record is a serialised `tf.train.Example`, a protobuf map from names to lists of bytes; the
video is ``0/image_aux1/encoded`` .. ``29/image_aux1/encoded``, 64 x 64 x 3 raw bytes each.
"""

from __future__ import annotations

import io
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mcvd.data.prepare.items import Item, find_items, not_downloaded
from mcvd.data.splits import folder_split
from mcvd.data.stills import IMAGE_ERRORS
from mcvd.errors import McvdError

FRAMES, SIDE, CAMERA = 30, 64, "image_aux1"


def find_bair(root: Path) -> tuple[list[Item], Counter[str]]:
    """One item per record; without TFRecord files, folders of frames below train/ and test/, like any videos."""
    files = sorted(file for file in root.rglob("*") if file.suffix in (".tfrecord", ".tfrecords") and file.is_file())
    if not files:
        items, ignored = find_items(root)
        if not items:
            raise not_downloaded(root, "*.tfrecords below train/ and test/, nor folders of frames")
        return items, ignored
    items = []
    for file in files:
        name = file.relative_to(root).as_posix()
        split = folder_split(name) or ""
        try:
            for number, position in enumerate(record_positions(file)):
                part = f"{name}#{number}"
                items.append(Item(part, "tfrecord", (str(file),), str(position), split, part))
        except McvdError as error:  # what lies before the damage is used
            items.append(Item(f"{name}#damaged", "tfrecord", (str(file),), split=split, problem=str(error)))
    return items, Counter()


def record_positions(file: Path) -> Iterator[int]:
    """Where the records of a TFRecord file begin; McvdError at the first that is damaged or cut short."""
    size, position = file.stat().st_size, 0
    with file.open("rb") as stream:
        while position < size:
            stream.seek(position)
            head = stream.read(12)
            length = _length(head)
            if length is None or position + 16 + length > size:
                raise McvdError(f"{file} is damaged or cut short at byte {position} of {size}")
            yield position
            position += 16 + length


def record_frames(file: Path, position: int) -> Iterator[np.ndarray]:
    """The frames, (64, 64, 3) uint8, of the record that begins at a byte of a TFRecord file."""
    with file.open("rb") as stream:
        stream.seek(position)
        length = _length(stream.read(12))
        data = stream.read(length or 0)
        if length is None or len(data) < length:
            raise McvdError(f"{file} is damaged or cut short at byte {position}")
    features = example_bytes(data)
    for index in range(FRAMES):
        name = f"{index}/{CAMERA}/encoded"
        if name not in features:
            raise McvdError(
                f"the record at byte {position} of {file} has no {name}; names there: {sorted(features)[:4]}"
            )
        yield _picture(features[name], file)


def _picture(data: bytes, file: Path) -> np.ndarray:
    if len(data) == SIDE * SIDE * 3:
        return np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3)
    try:  # re-packed copies hold png or jpeg; of a stranger's file nothing else is opened, EPS is a program to run
        return np.asarray(Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]).convert("RGB"))
    except IMAGE_ERRORS as error:
        raise McvdError(f"a frame in {file} is neither {SIDE}x{SIDE}x3 raw bytes nor an image") from error


# ------------------------------------------------------------------------------------------------- the two formats


def example_bytes(data: bytes) -> dict[str, bytes]:
    """The features of a serialised `tf.train.Example` that hold bytes: name -> the first value.

    Example {1: Features}; Features {repeated 1: map entry {1: name, 2: Feature}}; Feature {1: BytesList {1: value}}.
    """
    out = {}
    try:
        for features in _fields(data, 1):
            for entry in _fields(features, 1):
                name = bytes(next(_fields(entry, 1))).decode()
                for feature in _fields(entry, 2):
                    for values in _fields(feature, 1):
                        out[name] = bytes(next(_fields(values, 1), b""))
    except (IndexError, StopIteration, UnicodeDecodeError, ValueError) as error:
        raise McvdError("a record is not a tf.train.Example") from error
    return out


def _fields(message: bytes | memoryview, wanted: int) -> Iterator[memoryview]:
    """Values of the length-delimited fields with this number; ValueError or IndexError if it is not a protobuf."""
    message, at = memoryview(message), 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("cut short")
            if tag >> 3 == wanted:
                yield message[at : at + length]
            at += length
        else:
            raise ValueError(f"wire type {kind}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _length(head: bytes) -> int | None:
    """The length in a record's header, or None if its checksum is wrong. (The data's would take minutes in Python.)"""
    if len(head) < 12:
        return None
    length, checksum = struct.unpack("<QI", head)
    return length if masked_crc32c(head[:8]) == checksum else None


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720), rotated and shifted as TFRecord files store it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
