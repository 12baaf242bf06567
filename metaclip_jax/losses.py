"""The contrastive loss, exact over the whole batch, on any number of devices.

Embeddings stay split over devices inside `jax.shard_map`. The gathered form collects
all of them on each device and computes the device's rows of logits. The ring form
passes blocks of texts from device to device and never holds more than one chunk of
logits, forward or backward; it computes each logit once where the other does twice.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

Axes = tuple[str, ...]
Scalars = tuple[jax.Array, jax.Array, jax.Array]  # loss, accuracies of image and text

FORMS = ("gathered", "ring")


def softmax_loss(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    *,
    mesh: Mesh,
    batch_axes: Axes,
    form: str = "gathered",
    chunk: int = 1024,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Symmetric softmax cross-entropy of a batch against itself, and accuracies.

    Embeddings are f32[B, E] of unit norm, row i of both being a pair, B divisible by
    the devices along batch_axes; logit_scale f32[] multiplies their cosines. The
    accuracies, f32[], are the shares of images (texts) whose own text (image) scores
    higher than every other; a tie is a miss. `chunk` is how many columns of logits
    the ring form computes at a time.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"embeddings must be two [B, E] of one shape, got {image.shape} and "
            f"{text.shape}"
        )
    if form not in FORMS:
        raise ValueError(f"loss must be one of {FORMS}, got {form!r}")
    if form == "ring":
        scalars = _ring(image, text, logit_scale, mesh, batch_axes, chunk)
    else:
        scalars = jax.shard_map(
            functools.partial(_gathered, axes=batch_axes),
            mesh=mesh,
            in_specs=(P(batch_axes), P(batch_axes), P()),
            out_specs=P(),
        )(image, text, logit_scale)
    loss, image_accuracy, text_accuracy = scalars
    return loss, {"image_accuracy": image_accuracy, "text_accuracy": text_accuracy}


def _gathered(
    image: jax.Array, text: jax.Array, scale: jax.Array, *, axes: Axes
) -> Scalars:
    """One device's rows f32[b, E] against everybody's, summed over devices."""
    images = lax.all_gather(image, axes, tiled=True)  # [B, E]
    texts = lax.all_gather(text, axes, tiled=True)
    first = lax.axis_index(axes) * image.shape[0]
    image_loss, image_hits = _cross_entropy(scale * _dot(image, texts), first)
    text_loss, text_hits = _cross_entropy(scale * _dot(text, images), first)
    batch = images.shape[0]
    return (
        lax.psum(image_loss + text_loss, axes) / (2 * batch),
        lax.psum(image_hits, axes) / batch,
        lax.psum(text_hits, axes) / batch,
    )


def _cross_entropy(logits: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over rows of f32[b, B]; row i's own column is first + i."""
    own = first + jnp.arange(logits.shape[0])
    is_own = own[:, None] == jnp.arange(logits.shape[1])
    positive = jnp.take_along_axis(logits, own[:, None], axis=1)[:, 0]
    loss = jnp.sum(jax.nn.logsumexp(logits, axis=1) - positive)
    rival = jnp.max(jnp.where(is_own, -jnp.inf, logits), axis=1)
    return loss, _hits(positive, rival)


class _Running(NamedTuple):
    """What is known so far about some rows of logits; leaves f32[rows]."""

    top: jax.Array  # largest logit
    total: jax.Array  # sum of exp(logit - top)
    own: jax.Array  # the logit of the row's own pair
    rival: jax.Array  # largest logit but that

    def add(self, logits: jax.Array, is_own: jax.Array) -> "_Running":
        """Takes in f32[rows, n] more logits."""
        top = jnp.maximum(self.top, jnp.max(logits, axis=1))
        total = self.total * jnp.exp(self.top - top)
        total += jnp.sum(jnp.exp(logits - top[:, None]), axis=1)
        own = self.own + jnp.sum(jnp.where(is_own, logits, 0), axis=1)
        others = jnp.max(jnp.where(is_own, -jnp.inf, logits), axis=1)
        return _Running(top, total, own, jnp.maximum(self.rival, others))

    def log_sum_exp(self) -> jax.Array:
        """Returns f32[rows]."""
        return self.top + jnp.log(self.total)


# The derivative is by hand: that of the loops would save every block of logits.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _ring(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    mesh: Mesh,
    axes: Axes,
    chunk: int,
) -> Scalars:
    return _ring_forward(image, text, scale, mesh, axes, chunk)[0]


def _ring_forward(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    mesh: Mesh,
    axes: Axes,
    chunk: int,
) -> tuple[Scalars, tuple[jax.Array, ...]]:
    """Returns the scalars, and what the backward pass reads."""
    rows = P(axes)
    scalars, image_lse, text_lse = jax.shard_map(
        functools.partial(_forward_rows, axes=axes, chunk=chunk),
        mesh=mesh,
        in_specs=(rows, rows, P()),
        out_specs=(P(), rows, rows),
    )(image, text, scale)
    return scalars, (image, text, scale, image_lse, text_lse)


def _ring_backward(
    mesh: Mesh,
    axes: Axes,
    chunk: int,
    saved: tuple[jax.Array, ...],
    cotangents: Scalars,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of image, text and scale."""
    rows = P(axes)
    gradients = jax.shard_map(
        functools.partial(_backward_rows, axes=axes, chunk=chunk),
        mesh=mesh,
        in_specs=(rows, rows, P(), rows, rows),
        out_specs=(rows, rows, P()),
    )(*saved)
    return jax.tree.map(lambda gradient: gradient * cotangents[0], gradients)


_ring.defvjp(_ring_forward, _ring_backward)


def _forward_rows(
    image: jax.Array, text: jax.Array, scale: jax.Array, *, axes: Axes, chunk: int
) -> tuple[Scalars, jax.Array, jax.Array]:
    """One device's images f32[b, E] meet every text, a chunk at a time.

    Texts travel with what is known about them, and are home again at the end.
    """
    count, devices = image.shape[0], lax.axis_size(axes)
    texts = _chunked(text, chunk)  # [C, n, E]
    lowest, zero = jnp.full(count, -jnp.inf), jnp.zeros(count)
    unknown = _varying(_Running(lowest, zero, zero, lowest), axes)
    travelling = (texts, jax.tree.map(lambda x: _chunked(x, chunk), unknown))

    def hop(state: Any, number: jax.Array) -> tuple[Any, None]:
        images_known, (texts, texts_known) = state

        def meet(images_known: _Running, block: Any) -> tuple[_Running, _Running]:
            text, text_known, is_own = block
            is_own &= number == 0
            logits = scale * _dot(image, text)  # [b, n]
            return (
                images_known.add(logits, is_own),
                text_known.add(logits.T, is_own.T),
            )

        images_known, texts_known = lax.scan(
            meet, images_known, (texts, texts_known, _diagonal(count, chunk))
        )
        return (images_known, _pass_on((texts, texts_known), axes)), None

    (images_known, (_, texts_known)), _ = lax.scan(
        hop, (unknown, travelling), jnp.arange(devices)
    )
    texts_known = jax.tree.map(lambda x: x.reshape(count), texts_known)
    image_lse, text_lse = images_known.log_sum_exp(), texts_known.log_sum_exp()
    batch = count * devices
    loss = jnp.sum(image_lse - images_known.own + text_lse - texts_known.own)
    scalars = (
        lax.psum(loss, axes) / (2 * batch),
        lax.psum(_hits(images_known.own, images_known.rival), axes) / batch,
        lax.psum(_hits(texts_known.own, texts_known.rival), axes) / batch,
    )
    return scalars, image_lse, text_lse


def _backward_rows(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    image_lse: jax.Array,
    text_lse: jax.Array,
    *,
    axes: Axes,
    chunk: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same journey again; texts travel with their gradient."""
    count, devices = image.shape[0], lax.axis_size(axes)
    texts, texts_lse = _chunked(text, chunk), _chunked(text_lse, chunk)
    start = (jnp.zeros_like(image), _varying(jnp.zeros(()), axes))

    def hop(state: Any, number: jax.Array) -> tuple[Any, None]:
        gradients, (texts, texts_lse, text_gradients) = state

        def meet(gradients: Any, block: Any) -> tuple[Any, jax.Array]:
            image_gradient, scale_gradient = gradients
            text, text_lse, text_gradient, is_own = block
            is_own &= number == 0
            cosine = _dot(image, text)  # [b, n]
            logits = scale * cosine
            slope = jnp.exp(logits - image_lse[:, None]) + jnp.exp(logits - text_lse)
            slope -= 2 * is_own
            image_gradient += _dot(slope, text.T)
            scale_gradient += jnp.sum(slope * cosine)
            return (
                (image_gradient, scale_gradient),
                text_gradient + _dot(slope.T, image.T),
            )

        gradients, text_gradients = lax.scan(
            meet,
            gradients,
            (texts, texts_lse, text_gradients, _diagonal(count, chunk)),
        )
        travelling = _pass_on((texts, texts_lse, text_gradients), axes)
        return (gradients, travelling), None

    travelling = (texts, texts_lse, jnp.zeros_like(texts))
    ((image_gradient, scale_gradient), travelling), _ = lax.scan(
        hop, (start, travelling), jnp.arange(devices)
    )
    text_gradient = travelling[2].reshape(text.shape)
    mean = 1 / (2 * count * devices)
    return (
        image_gradient * scale * mean,
        text_gradient * scale * mean,
        lax.psum(scale_gradient, axes) * mean,
    )


def _chunked(x: jax.Array, chunk: int) -> jax.Array:
    """Splits [b, ...] into [C, n, ...] with the largest n <= chunk that divides b."""
    size = next(n for n in range(min(chunk, len(x)), 0, -1) if len(x) % n == 0)
    return x.reshape(-1, size, *x.shape[1:])


def _diagonal(count: int, chunk: int) -> jax.Array:
    """Returns bool[C, b, n]: whether a column of a chunk is the row's own pair."""
    columns = _chunked(jnp.arange(count), chunk)
    return columns[:, None, :] == jnp.arange(count)[None, :, None]


def _pass_on(block: Any, axes: Axes) -> Any:
    """Sends a pytree to the next device of the ring and takes the last one's."""
    devices = lax.axis_size(axes)
    ring = [(device, (device + 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda x: lax.ppermute(x, axes, ring), block)


def _varying(tree: Any, axes: Axes) -> Any:
    """Says that a constant may differ between devices, as a loop's carry must."""
    return jax.tree.map(lambda x: lax.pcast(x, axes, to="varying"), tree)


def _hits(own: jax.Array, rival: jax.Array) -> jax.Array:
    """Counts, as f32[], the rows whose own logit beats every other."""
    return jnp.sum(own > rival, dtype=jnp.float32)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """f32[m, k] times f32[n, k] transposed, in true f32 also on TPUs."""
    return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
