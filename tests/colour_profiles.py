"""Colour profiles as cameras, phones and printers put them into files."""

import itertools
import struct

import numpy as np

# Columns are the XYZ of the primaries, adapted to D50.
PRIMARIES = {
    "sRGB": [
        (0.43607, 0.38515, 0.14307),
        (0.22249, 0.71687, 0.06061),
        (0.01392, 0.09708, 0.71410),
    ],
    "Display P3": [
        (0.51512, 0.29198, 0.15710),
        (0.24120, 0.69225, 0.06657),
        (-0.00105, 0.04189, 0.78407),
    ],
    "Adobe RGB (1998)": [
        (0.60974, 0.20528, 0.14919),
        (0.31111, 0.62567, 0.06322),
        (0.01947, 0.06087, 0.74457),
    ],
}
WHITE = (0.9642, 1.0, 0.8249)
# sRGB colours of a printer's inks; two over each other are their product.
INKS = np.array([(0, 140, 200), (200, 20, 110), (250, 225, 0), (30, 30, 30)]) / 255


def srgb_to_linear(values):
    return np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )


def linear_to_srgb(values):
    values = np.clip(values, 0, 1)
    low, high = values * 12.92, 1.055 * np.maximum(values, 1e-9) ** (1 / 2.4) - 0.055
    return np.where(values <= 0.0031308, low, high)


def linear(name, values):
    """The light of values 0 to 1 of a profile."""
    if name == "Adobe RGB (1998)":
        return values ** (563 / 256)
    return srgb_to_linear(values)


def to_srgb(name, pixels):
    """float[..., 3] 0 to 255: pixels of `rgb(name)` as sRGB, worked out by hand."""
    light = linear(name, np.asarray(pixels) / 255)
    xyz = light @ np.array(PRIMARIES[name]).T
    return 255 * linear_to_srgb(xyz @ np.linalg.inv(np.array(PRIMARIES["sRGB"])).T)


def _numbers(*values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _curve(values):
    steps = np.round(np.asarray(values) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(steps)) + steps.tobytes()


def _profile(kind, space, connection, tags):
    text = b"desc\0\0\0\0" + struct.pack(">I", len(tags["desc"]) + 1) + tags["desc"]
    tags = tags | {"desc": text + bytes(79)}
    tags |= {"wtpt": b"XYZ \0\0\0\0" + _numbers(*WHITE)}
    position, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name.encode() + struct.pack(">II", position + len(body), len(data))
        body += data
    head = b"none" + struct.pack(">I", 0x02400000) + kind + space + connection
    head += bytes(12) + b"acsp" + bytes(28) + _numbers(*WHITE) + bytes(48)
    size = 4 + len(head) + 4 + len(table) + len(body)
    return struct.pack(">I", size) + head + struct.pack(">I", len(tags)) + table + body


def rgb(name, description=None):
    """The profile of a camera or screen, of three primaries and a curve."""
    tags = {"desc": (description or name).encode()}
    for channel, xyz in zip("rgb", np.array(PRIMARIES[name]).T, strict=True):
        tags[f"{channel}XYZ"] = b"XYZ \0\0\0\0" + _numbers(*xyz)
        tags[f"{channel}TRC"] = _curve(linear(name, np.linspace(0, 1, 1024)))
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey(gamma):
    tags = {"desc": b"Dot Gain", "kTRC": _curve(np.linspace(0, 1, 1024) ** gamma)}
    return _profile(b"mntr", b"GRAY", b"XYZ ", tags)


def _lab(colours):
    xyz = srgb_to_linear(colours) @ np.array(PRIMARIES["sRGB"]).T / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def cmyk():
    """The profile of a printer: a table of all its inks over each other."""
    on = np.array(list(itertools.product((0, 1), repeat=4)))
    colours = np.where(on[..., None] == 1, INKS, 1).prod(axis=1)
    lab = _lab(colours) * (2.55, 1, 1) + (0, 128, 128)
    nodes = np.clip(np.round(lab), 0, 255).astype(np.uint8)
    straight = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + _numbers(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += 4 * straight + nodes.tobytes() + 3 * straight
    tags = {"desc": b"Inks", "A2B0": table}
    return _profile(b"prtr", b"CMYK", b"Lab ", tags)
