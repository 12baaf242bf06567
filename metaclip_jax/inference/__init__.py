"""Inference: loading models from any format, and embedding with them."""
