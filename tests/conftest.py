"""Eight virtual CPU devices for whatever test starts jax; jax is not imported here."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Tests compile much and compute little: this halves the time to compile.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
