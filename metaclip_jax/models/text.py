"""The text tower: a causal transformer, read out at the end-of-text token."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers

from metaclip_jax.models import layers, norm, positions

# Rows of a stored token table are a multiple of this, so that any mesh divides it
# and TPUs fill their lanes. The rows past the vocabulary are zero and never read.
VOCAB_MULTIPLE = 128


def stored_rows(vocab_size: int) -> int:
    """Rows of the token table in storage, at least vocab_size."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def token_table(
    init: nnx.Initializer, vocab_size: int, width: int, rngs: nnx.Rngs
) -> jax.Array:
    """Returns f32[stored_rows, width], new but for the padding, which is zero."""
    table = init(rngs.params(), (vocab_size, width))
    padding = stored_rows(vocab_size) - vocab_size
    return jnp.pad(table, ((0, padding), (0, 0)))


class TextTower(nnx.Module):
    """Token and position embeddings through the blocks; one position is read out."""

    def __init__(
        self,
        *,
        context_length: int,
        vocab_size: int,
        pool: str,
        eos_id: int,
        num_layers: int,
        embed_dim: int,
        block: layers.BlockShape,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        width = block.width
        self.token_embedding = nnx.Param(
            token_table(initializers.normal(0.02), vocab_size, width, rngs)
        )
        self.position_embedding = nnx.Param(
            initializers.normal(0.01)(rngs.params(), (context_length, width))
        )
        init = layers.text_init(
            width=width, mlp_width=block.mlp_width, layers=num_layers
        )
        self.blocks, self.last = layers.split_last(
            layers.make_blocks(block, init, layers=num_layers, rngs=rngs)
        )
        self.ln_final = norm.LayerNorm(width, epsilon=block.epsilon, rngs=rngs)
        self.projection = nnx.Param(
            initializers.normal(width**-0.5)(rngs.params(), (width, embed_dim))
        )
        self.pool = pool
        self.eos_id = eos_id
        self.dtype = block.dtype
        self.remat = remat

    def __call__(
        self,
        tokens: jax.Array,
        *,
        constrain: layers.Constrain = layers.unconstrained,
    ) -> jax.Array:
        """Maps tokens int32[B, T] to f32[B, E], not yet of unit norm."""
        x = constrain(jnp.take(self.token_embedding[...], tokens, axis=0))
        x = positions.add(x, self.position_embedding[: tokens.shape[1]])
        x = x.astype(self.dtype)
        x = layers.run_blocks(self.blocks, x, remat=self.remat, constrain=constrain)
        # Causal attention has no use for what follows the end, padding included.
        end = end_position(tokens, pool=self.pool, eos_id=self.eos_id)
        features = layers.read_block(  # [B, D]
            self.last, x, end, remat=self.remat, constrain=constrain
        )
        features = self.ln_final(features).astype(self.dtype)
        embedding = features @ self.projection[...].astype(self.dtype)
        return constrain(embedding.astype(jnp.float32))


def end_position(tokens: jax.Array, *, pool: str, eos_id: int) -> jax.Array:
    """Returns int32[B], the position that stands for each text of int32[B, T].

    "eos" is the first end mark. "argmax" is the largest id, the same thing where the
    end mark is the vocabulary's last id, as in CLIP's. A text without any end mark
    is read at position 0: tokenizers keep the mark when they cut.
    """
    if pool == "argmax":
        return jnp.argmax(tokens, axis=1).astype(jnp.int32)
    return jnp.argmax(tokens == eos_id, axis=1).astype(jnp.int32)
