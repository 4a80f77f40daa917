"""What can happen to a file, by a seeded generator. Knows nothing of what reads it."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Damage = Callable[[bytes, np.random.Generator], bytes]

EDGE = 1024
"""Bytes at either end of a file: headers and indices, which random places would seldom meet."""


def cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: place(data, rng)]


def flip_bits(data: bytes, rng: np.random.Generator) -> bytes:
    """1 to 40 bits, all of them in one window of the file."""
    damaged = bytearray(data)
    first, last = window(data, rng)
    for _ in range(int(rng.integers(1, 41) if rng.random() < 0.7 else 1)):
        damaged[int(rng.integers(first, last))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def zero(data: bytes, rng: np.random.Generator) -> bytes:
    start = place(data, rng)
    length = int(rng.integers(1, max(len(data) // 4, 2)))
    return (data[:start] + bytes(length) + data[start + length :])[: len(data)]


def empty(data: bytes, rng: np.random.Generator) -> bytes:
    return b""


def append(data: bytes, rng: np.random.Generator) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 4000)))


def insert(data: bytes, rng: np.random.Generator) -> bytes:
    start = place(data, rng)
    return data[:start] + rng.bytes(int(rng.integers(1, 400))) + data[start:]


DAMAGES: dict[str, Damage] = {
    "cut": cut, "bits": flip_bits, "zeros": zero, "empty": empty, "appended": append,
    "inserted": insert,
}  # fmt: skip


def window(data: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """First and last + 1 byte: of the whole file, of either end, or of a JSON within."""
    json = data.find(b'{"version"')
    windows = [(0, len(data)), (0, len(data)), (0, EDGE), (len(data) - EDGE, len(data))]
    if json >= 0:
        windows += [(json, json + EDGE // 2)] * 4
    first, last = windows[int(rng.integers(len(windows)))]
    return max(first, 0), min(last, len(data))


def place(data: bytes, rng: np.random.Generator) -> int:
    return int(rng.integers(*window(data, rng)))


def other_file(rng: np.random.Generator) -> tuple[str, bytes]:
    """A sound file of some kind, and which."""
    kinds = {
        "text": ("", ""), "JPEG": ("RGB", "JPEG"), "grey JPEG": ("L", "JPEG"),
        "CMYK JPEG": ("CMYK", "JPEG"), "PNG": ("RGB", "PNG"), "PNG with alpha": ("RGBA", "PNG"),
        "palette PNG": ("P", "PNG"), "1-bit PNG": ("1", "PNG"), "16-bit PNG": ("I;16", "PNG"),
        "TIFF": ("RGB", "TIFF"), "16-bit TIFF": ("I;16", "TIFF"), "BMP": ("RGB", "BMP"),
        "GIF": ("P", "GIF"), "WebP": ("RGB", "WEBP"), "noise": ("", "noise"), "array": ("", "npy"),
    }  # fmt: skip
    name = sorted(kinds)[int(rng.integers(len(kinds)))]
    mode, form = kinds[name]
    out = io.BytesIO()
    if mode:
        grey = rng.integers(0, 200, (int(rng.integers(1, 80)), int(rng.integers(1, 80))), np.uint8)
        image = Image.fromarray(grey)
        if mode == "I;16":
            image = Image.fromarray(grey.astype(np.uint16) * 20)
        (image if image.mode == mode else image.convert(mode)).save(out, form)
    elif form == "npy":
        np.save(out, rng.integers(0, 9, 30))
    else:
        out.write(rng.bytes(3000) if form else b"<html>404 not found</html>\n" * 40)
    return name, out.getvalue()


def write(path: Path, data: bytes, anew: bool) -> None:
    """In place, as a failing disk does, or as a new file that takes the old one's name."""
    if not anew:
        path.write_bytes(data)
        return
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    os.replace(new, path)


def draw(path: Path, rng: np.random.Generator) -> tuple[str, Callable[[], None]]:
    """What is to happen to the file, in words, and how to make it happen."""
    data, anew = path.read_bytes(), bool(rng.random() < 0.5)
    names = ["bits"] * 4 + ["cut"] * 2 + [*DAMAGES, "other", "other", "folder", "vanished"]
    name = names[int(rng.integers(len(names)))]
    if name == "vanished":
        return name, path.unlink
    if name == "folder":
        return name, lambda: (path.unlink(), path.mkdir())[0]
    if name == "other":
        kind, damaged = other_file(rng)
        return f"{kind} in its place", lambda: write(path, damaged, anew)
    damaged = DAMAGES[name](data, rng)
    return name, lambda: write(path, damaged, anew)


def restore(path: Path, data: bytes) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.write_bytes(data)
