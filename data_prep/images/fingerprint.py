"""Perceptual fingerprints: near-equal pictures get near-equal 64-bit numbers.

The fingerprint is the classic DCT hash. The picture is shrunk to 32 x 32 grey pixels;
of its two-dimensional cosine transform the 64 low frequencies (1 to 8 both ways, so
neither brightness nor plain gradients count) give one bit each: above their median or
not. Scaling and recompression flip a few bits, another picture about half of them.
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
    # Rounded, so that a flat picture's bits do not hang on floating-point dust.
    spectrum = np.round(spectrum, 3).ravel()
    bits = spectrum > np.median(spectrum)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")
