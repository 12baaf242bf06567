"""Perceptual fingerprints: similar images get 64-bit numbers that differ little.

The fingerprint is a DCT hash. The image is scaled to 32 x 32 grey pixels. The 64 low
frequencies (1 to 8 in both directions, so without brightness) of its two-dimensional
cosine transform give one bit each: above their median or not. Scaling and recompression
flip a few bits; an unrelated image differs in about half.
"""

import cv2
import numpy as np

_SIDE = 32
_FREQUENCIES = 8

# Rows are the cosines of frequencies 1 to 8 at 32 sample points. f64[8, 32]
_BASIS = np.cos(
    np.pi / _SIDE * np.outer(np.arange(1, _FREQUENCIES + 1), np.arange(_SIDE) + 0.5)
)


def fingerprint(grey: np.ndarray) -> int:
    """Returns the 64-bit fingerprint of a grey picture u8[H, W] of any size."""
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    spectrum = _BASIS @ small.astype(np.float64) @ _BASIS.T
    # Rounded, so that the bits of a flat image do not depend on rounding errors.
    spectrum = np.round(spectrum, 3).ravel()
    bits = spectrum > np.median(spectrum)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
