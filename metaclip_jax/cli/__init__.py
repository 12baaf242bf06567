"""What commands of both programs share. Imports neither jax nor Beam."""
