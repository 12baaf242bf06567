"""Command line code of both programs. It imports neither jax nor Beam."""
