"""The text tower: a causal transformer, pooled at the end-of-text token."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx import initializers

from metaclip_jax.models import layers, positions, stack

# A stored token table is padded to a multiple of this many rows, so that meshes divide
# it and TPUs fill their lanes. The rows past the vocabulary are zero and never read.
VOCAB_MULTIPLE = 128


def stored_rows(vocab_size: int) -> int:
    """Returns the rows of the token table in storage, at least vocab_size."""
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def token_table(
    init: nnx.Initializer, vocab_size: int, width: int, rngs: nnx.Rngs
) -> jax.Array:
    """Returns a new table f32[stored_rows, width]; the padding rows are zero."""
    table = init(rngs.params(), (vocab_size, width))
    padding = stored_rows(vocab_size) - vocab_size
    return jnp.pad(table, ((0, padding), (0, 0)))


class TextTower(nnx.Module):
    """CLIP's text tower, with a causal mask and pooled at one position."""

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
        self.ln_final = block.layer_norm(rngs)
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
        rows: stack.Rows = stack.ANYWHERE,
    ) -> jax.Array:
        """Maps tokens int32[B, T] to f32[B, E], not of unit norm."""
        x = rows.constrain(jnp.take(self.token_embedding[...], tokens, axis=0))
        x = positions.add(x, self.position_embedding[: tokens.shape[1]])
        x = x.astype(self.dtype)
        x = layers.run_blocks(self.blocks, x, remat=self.remat, rows=rows)
        # With causal attention, padding after the end mark cannot change the result.
        end = end_position(tokens, pool=self.pool, eos_id=self.eos_id)
        features = layers.read_block(  # [B, D]
            self.last, x, end, remat=self.remat, rows=rows
        )
        features = self.ln_final(features).astype(self.dtype)
        embedding = features @ self.projection[...].astype(self.dtype)
        return rows.constrain(embedding.astype(jnp.float32))


def end_position(tokens: jax.Array, *, pool: str, eos_id: int) -> jax.Array:
    """Returns int32[B], the position at which each text of int32[B, T] is pooled.

    "eos" is the first end mark. "argmax" is the largest id, which is the same where the
    end mark is the vocabulary's last id, as in CLIP's. A text without an end mark is
    pooled at position 0; tokenizers keep the mark when they truncate.
    """
    if pool == "argmax":
        return jnp.argmax(tokens, axis=1).astype(jnp.int32)
    return jnp.argmax(tokens == eos_id, axis=1).astype(jnp.int32)
