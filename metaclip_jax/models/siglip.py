"""SigLIP's two towers (arXiv 2303.15343): no class token, no causal mask.

The image tower is pooled by a learned query that attends to all patches (a MAP head).
The text tower is pooled at its last position, which is padding unless the text fills
the context. Names and sizes are those of the released checkpoints.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import initializers

from metaclip_jax.models import layers, positions, stack, text, vit

LAYER_NORM_EPSILON = 1e-6
# Per channel: this scales pixels to [-1, 1].
IMAGE_MEAN = IMAGE_STD = np.full(3, 0.5, np.float32)


class Head(nnx.Module):
    """MAP head: one learned query attends to all positions, then an MLP."""

    def __init__(self, shape: layers.BlockShape, *, rngs: nnx.Rngs) -> None:
        width = shape.width
        init = layers.siglip_init(width=width, mlp_width=shape.mlp_width)
        probe = layers.symmetric_uniform((6 / (width + 1)) ** 0.5)
        self.probe = nnx.Param(probe(rngs.params(), (width,)))
        self.attn = layers.Attention(shape, init, rngs=rngs)
        self.ln_2 = shape.layer_norm(rngs)
        self.mlp = layers.Mlp(shape, init, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, N, D] to [B, D]."""
        probe = jnp.broadcast_to(self.probe[...], (len(x), 1, x.shape[2]))
        pooled = self.attn.read(probe, x)[:, 0]
        return pooled + self.mlp(self.ln_2(pooled))


class ImageTower(nnx.Module):
    """SigLIP's image tower. `Head` pools it; there is no projection."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_layers: int,
        block: layers.BlockShape,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        width = block.width
        patches = (image_size // patch_size) ** 2
        self.patch_embed = vit.PatchEmbed(
            patch=patch_size, width=width, dtype=block.dtype, rngs=rngs
        )
        self.patch_bias = nnx.Param(jnp.zeros(width))
        self.position_embedding = nnx.Param(
            initializers.normal(width**-0.5)(rngs.params(), (patches, width))
        )
        self.blocks = layers.make_blocks(
            block,
            layers.siglip_init(width=width, mlp_width=block.mlp_width),
            layers=num_layers,
            rngs=rngs,
        )
        self.ln_post = block.layer_norm(rngs)
        self.head = Head(block, rngs=rngs)
        self.dtype = block.dtype
        self.remat = remat

    def __call__(
        self,
        images: jax.Array,
        patches: jax.Array | None = None,
        *,
        rows: stack.Rows = stack.ANYWHERE,
    ) -> jax.Array:
        """Maps images [B, H, W, 3] to f32[B, E], not of unit norm; E is the width.

        uint8 images are normalised here; f32 images must be normalised already.
        `patches`, int32[B, n], are those that the tower sees; None = all.
        """
        x = rows.constrain(
            self.patch_embed(vit.normalise(images, IMAGE_MEAN, IMAGE_STD))
        )
        table = self.patch_bias[...] + self.position_embedding[...]
        x = positions.add(x, table.astype(self.dtype))
        x = vit.select_patches(x, patches)
        x = layers.run_blocks(self.blocks, x, remat=self.remat, rows=rows)
        embedding = self.head(self.ln_post(x).astype(self.dtype))
        return rows.constrain(embedding.astype(jnp.float32))


class TextTower(nnx.Module):
    """SigLIP's text tower, without a causal mask and pooled at the last position."""

    def __init__(
        self,
        *,
        context_length: int,
        vocab_size: int,
        num_layers: int,
        embed_dim: int,
        block: layers.BlockShape,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        width = block.width
        normal = initializers.normal(width**-0.5)
        self.token_embedding = nnx.Param(
            text.token_table(normal, vocab_size, width, rngs)
        )
        self.position_embedding = nnx.Param(
            normal(rngs.params(), (context_length, width))
        )
        init = layers.siglip_init(width=width, mlp_width=block.mlp_width)
        self.blocks, self.last = layers.split_last(
            layers.make_blocks(block, init, layers=num_layers, rngs=rngs)
        )
        self.ln_final = block.layer_norm(rngs)
        self.projection = nnx.Param(
            initializers.lecun_normal()(rngs.params(), (width, embed_dim))
        )
        self.projection_bias = nnx.Param(jnp.zeros(embed_dim))
        self.dtype = block.dtype
        self.remat = remat

    def __call__(
        self,
        tokens: jax.Array,
        *,
        rows: stack.Rows = stack.ANYWHERE,
    ) -> jax.Array:
        """Maps tokens int32[B, context_length] to f32[B, E], not of unit norm."""
        x = rows.constrain(jnp.take(self.token_embedding[...], tokens, axis=0))
        x = positions.add(x, self.position_embedding[: tokens.shape[1]])
        x = x.astype(self.dtype)
        x = layers.run_blocks(self.blocks, x, remat=self.remat, rows=rows)
        features = layers.read_block(self.last, x, -1, remat=self.remat, rows=rows)
        features = self.ln_final(features).astype(self.dtype)
        embedding = features @ self.projection[...].astype(self.dtype)
        embedding += self.projection_bias[...].astype(self.dtype)
        return rows.constrain(embedding.astype(jnp.float32))
