"""Perceptual fingerprints: similar pictures get numbers that differ in few bits.

The fingerprint is PDQ (Facebook's ThreatExchange), 256 bits from the low frequencies of
a cosine transform of 64 x 64 grey pixels. Scaling and recompression flip a few bits, an
unrelated picture differs in about half. benchmarks/near_duplicates.py compares it with
other hashes.
"""

import cv2
import numpy as np
import pdqhash

BITS = 256
BYTES = BITS // 8
_SIDE = 64
# PDQ's measure of how much there is to see, 0 to 100. Below this it is a flat picture,
# whose bits are noise.
_LEAST_QUALITY = 3


def fingerprint(grey: np.ndarray) -> bytes:
    """Returns the 32 bytes of a grey picture u8[H, W] of any size.

    b"" for a picture with too few features to be told from others, such as a flat one.
    """
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    bits, quality = pdqhash.compute(cv2.cvtColor(small, cv2.COLOR_GRAY2RGB))
    return np.packbits(bits).tobytes() if quality >= _LEAST_QUALITY else b""
