"""Writes TIFFs of any bands, depth, sign, order of bytes and tiling, packed by deflate or not, tag by tag."""

import struct
import zlib

import numpy as np

_FORMATS = {3: "H", 4: "I"}


def tiff(pixels, *, photometric=1, planes=False, order="<", tile=None, deflate=False, alpha=0, more=None):
    """Returns the file of pixels (H, W) or (H, W, C); `tile` is (width, height), `alpha` counts the last bands.

    `more` maps further tags to (type, values): 2 is one value, bytes, 3 and 4 are numbers of 16 and 32 bits.
    """
    pixels = np.atleast_3d(pixels)
    height, width, bands = pixels.shape
    across, down = tile or (width, height)
    padded = np.pad(pixels, ((0, -height % down), (0, -width % across), (0, 0)))
    parts = []
    for band in [slice(i, i + 1) for i in range(bands)] if planes else [slice(None)]:
        for y in range(0, height, down):
            for x in range(0, width, across):
                part = padded[y : y + down, x : x + across, band]
                content = part.astype(part.dtype.newbyteorder(order)).tobytes()
                parts.append(zlib.compress(content) if deflate else content)
    content = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    offsets = []
    for part in parts:
        offsets.append(len(content))
        content += part + bytes(len(part) % 2)
    kind, extra = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind], bands - (3 if photometric == 2 else 1)
    tags = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [pixels.dtype.itemsize * 8] * bands),
        259: (3, [8 if deflate else 1]),
        262: (3, [photometric]),
        277: (3, [bands]),
        284: (3, [2 if planes else 1]),
        339: (3, [kind] * bands),
        324 if tile else 273: (4, offsets),
        325 if tile else 279: (4, [len(part) for part in parts]),
        **({322: (3, [across]), 323: (3, [down])} if tile else {278: (3, [height])}),
        **({338: (3, [0] * (extra - alpha) + [2] * alpha)} if extra > 0 else {}),
        **(more or {}),
    }
    entries = []
    for tag, (form, values) in sorted(tags.items()):
        packed = values[0] if form == 2 else struct.pack(f"{order}{len(values)}{_FORMATS[form]}", *values)
        place = packed.ljust(4, b"\0")
        if len(packed) > 4:
            place = struct.pack(f"{order}I", len(content))
            content += packed + bytes(len(packed) % 2)
        count = len(packed) if form == 2 else len(values)
        entries.append(struct.pack(f"{order}HHI", tag, form, count) + place)
    struct.pack_into(f"{order}I", content, 4, len(content))
    return bytes(content + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4))
