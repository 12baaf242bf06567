"""The image tower: CLIP's vision transformer with a class token."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx import initializers

from metaclip_jax.models import layers, positions, stack

# OpenAI's channel statistics; every MetaCLIP model uses them.
IMAGE_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
IMAGE_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

LAYER_NORM_EPSILON = 1e-5


def normalise(images: jax.Array, mean: np.ndarray, std: np.ndarray) -> jax.Array:
    """Normalises uint8[B, H, W, 3] to f32; returns images of other dtypes unchanged."""
    if images.dtype != jnp.uint8:
        return images
    return (images.astype(jnp.float32) / 255 - mean) / std


def select_patches(x: jax.Array, patches: jax.Array | None) -> jax.Array:
    """Returns [B, n, D], the `patches` int32[B, n] of x [B, N, D]; None = all."""
    if patches is None:
        return x
    return jnp.take_along_axis(x, patches[:, :, None], axis=1)


class PatchEmbed(nnx.Module):
    """Cuts an image into patches and projects each. No bias, as in CLIP."""

    def __init__(self, *, patch: int, width: int, dtype: str, rngs: nnx.Rngs) -> None:
        shape = (patch, patch, 3, width)
        init = layers.symmetric_uniform((patch * patch * 3) ** -0.5)
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.dtype = dtype

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps f32[B, H, W, 3] to [B, N, D], patches in row order."""
        patch, _, channels, width = self.kernel.shape
        batch, height, image_width, _ = images.shape
        rows, columns = height // patch, image_width // patch
        # A matmul equals the convolution here, and so its weight gradient is a matmul.
        x = images.astype(self.dtype)
        x = x.reshape(batch, rows, patch, columns, patch, channels)
        x = x.swapaxes(2, 3).reshape(batch, rows * columns, -1)
        return x @ self.kernel[...].astype(self.dtype).reshape(-1, width)


class ImageTower(nnx.Module):
    """CLIP's image tower, pooled at the class token."""

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        num_layers: int,
        embed_dim: int,
        block: layers.BlockShape,
        remat: str,
        rngs: nnx.Rngs,
    ) -> None:
        width = block.width
        normal = initializers.normal(width**-0.5)
        count = (image_size // patch_size) ** 2 + 1
        self.patch_embed = PatchEmbed(
            patch=patch_size, width=width, dtype=block.dtype, rngs=rngs
        )
        self.class_embedding = nnx.Param(normal(rngs.params(), (width,)))
        self.position_embedding = nnx.Param(normal(rngs.params(), (count, width)))
        self.ln_pre = block.layer_norm(rngs)
        init = layers.image_init(width=width, mlp_width=block.mlp_width)
        self.blocks, self.last = layers.split_last(
            layers.make_blocks(block, init, layers=num_layers, rngs=rngs)
        )
        self.ln_post = block.layer_norm(rngs)
        self.projection = nnx.Param(normal(rngs.params(), (width, embed_dim)))
        self.dtype = block.dtype
        self.remat = remat

    def __call__(
        self,
        images: jax.Array,
        patches: jax.Array | None = None,
        *,
        rows: stack.Rows = stack.ANYWHERE,
    ) -> jax.Array:
        """Maps images [B, H, W, 3] to f32[B, E], not of unit norm.

        uint8 images are normalised here; f32 images must be normalised already.
        `patches`, int32[B, n], are those that the tower sees; None = all.
        """
        images = normalise(images, IMAGE_MEAN, IMAGE_STD)
        x = rows.constrain(self.patch_embed(images))  # [B, N, D]
        x = positions.add(x, self.position_embedding[1:])
        x = select_patches(x, patches)
        class_token = self.class_embedding[...].astype(self.dtype)
        class_token = jnp.broadcast_to(
            class_token + self.position_embedding[0], (x.shape[0], 1, x.shape[2])
        )
        x = jnp.concatenate([class_token, x], axis=1)  # [B, N + 1, D]
        x = self.ln_pre(x).astype(self.dtype)
        x = layers.run_blocks(self.blocks, x, remat=self.remat, rows=rows)
        features = layers.read_block(  # [B, D]
            self.last, x, 0, remat=self.remat, rows=rows
        )
        features = self.ln_post(features).astype(self.dtype)
        embedding = features @ self.projection[...].astype(self.dtype)
        return rows.constrain(embedding.astype(jnp.float32))
