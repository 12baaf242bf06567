"""The towers, CLIP itself, and the sizes of the released models."""
