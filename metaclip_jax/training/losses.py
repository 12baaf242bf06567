"""The contrastive loss, exact over the global batch, on any number of devices.

There are two losses: CLIP's symmetric softmax, and SigLIP's sigmoid (arXiv 2303.15343),
which classifies each image-text combination independently. Each has two forms inside
`jax.shard_map`, whose inputs are sharded over the batch. The gathered form all-gathers
the embeddings and computes the device's rows of logits. The ring form passes blocks of
texts from device to device and never holds more than one chunk of logits, forward or
backward; it computes each logit once, the gathered softmax twice.
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

_LEAST = float(jnp.finfo(jnp.float32).min)  # finite: the difference of two is not NaN

KINDS = ("softmax", "sigmoid")
FORMS = ("gathered", "ring")


def contrastive_loss(
    image: jax.Array,
    text: jax.Array,
    logit_scale: jax.Array,
    logit_bias: jax.Array | float = 0.0,
    *,
    mesh: Mesh,
    batch_axes: Axes,
    kind: str = "softmax",
    form: str = "gathered",
    chunk: int = 1024,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss f32[] of a batch, and the in-batch accuracies.

    Embeddings are f32[B, E] of unit norm; row i of both is a pair, and B is divisible
    by the devices along batch_axes. Logits are logit_scale f32[] times the cosines plus
    logit_bias f32[]. The softmax loss is the mean cross-entropy over rows and columns,
    on which a bias has no effect; the sigmoid loss is the sum over all logits divided
    by B. The accuracies, f32[], are the shares of images (texts) whose own text (image)
    scores higher than every other; a tie is a miss. `chunk` is the number of columns of
    logits that the ring form computes at a time.

    Raises:
        ValueError: the shapes differ, or `check` refuses kind, form or chunk.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"embeddings must be two [B, E] of one shape, got {image.shape} and "
            f"{text.shape}"
        )
    check(kind=kind, form=form, chunk=chunk)
    bias = jnp.asarray(logit_bias, jnp.float32)
    if form == "ring":
        options = _RingOptions(kind, mesh, batch_axes, chunk)
        scalars = _ring(image, text, logit_scale, bias, options)
    else:
        gathered = _gathered_softmax if kind == "softmax" else _gathered_sigmoid
        scalars = jax.shard_map(
            functools.partial(gathered, axes=batch_axes),
            mesh=mesh,
            in_specs=(P(batch_axes), P(batch_axes), P(), P()),
            out_specs=P(),
        )(image, text, logit_scale, bias)
    loss, image_accuracy, text_accuracy = scalars
    return loss, {"image_accuracy": image_accuracy, "text_accuracy": text_accuracy}


def check(*, kind: str, form: str, chunk: int) -> None:
    """Checks the options of the loss before anything is computed.

    Raises:
        ValueError: kind or form is unknown, or chunk is below 1.
    """
    if kind not in KINDS:
        raise ValueError(f"loss must be one of {KINDS}, got {kind!r}")
    if form not in FORMS:
        raise ValueError(f"loss_form must be one of {FORMS}, got {form!r}")
    if chunk < 1:
        raise ValueError(f"loss_chunk must be at least 1 column, got {chunk}")


def _gathered_softmax(
    image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array, *, axes: Axes
) -> Scalars:
    """Compares the device's rows f32[b, E] with all rows, and sums over devices."""
    images = lax.all_gather(image, axes, tiled=True)  # [B, E]
    texts = lax.all_gather(text, axes, tiled=True)
    first = lax.axis_index(axes) * image.shape[0]
    image_loss, image_hits = _cross_entropy(scale * _dot(image, texts) + bias, first)
    text_loss, text_hits = _cross_entropy(scale * _dot(text, images) + bias, first)
    batch = images.shape[0]
    return (
        lax.psum(image_loss + text_loss, axes) / (2 * batch),
        lax.psum(image_hits, axes) / batch,
        lax.psum(text_hits, axes) / batch,
    )


def _cross_entropy(logits: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the loss and hits f32[] of rows f32[b, B]; row i's pair is first + i."""
    positive, is_pair = _positives(logits, first)
    negatives = jax.nn.logsumexp(jnp.where(is_pair, _LEAST, logits), axis=1)
    loss = jnp.sum(_softmax_loss(positive, negatives))
    return loss, _hits(positive, _hardest(logits, is_pair, axis=1))


def _gathered_sigmoid(
    image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array, *, axes: Axes
) -> Scalars:
    """Compares the device's images f32[b, E] with all texts, and sums over devices."""
    texts = lax.all_gather(text, axes, tiled=True)  # [B, E]
    first = lax.axis_index(axes) * image.shape[0]
    logits = scale * _dot(image, texts) + bias  # [b, B]
    positive, is_pair = _positives(logits, first)
    loss = jnp.sum(_sigmoid_loss(logits, is_pair))
    image_hits = _hits(positive, _hardest(logits, is_pair, axis=1))
    # The negatives of a text are on all devices.
    logits = lax.stop_gradient(logits)
    hardest = lax.pmax(_hardest(logits, is_pair, axis=0), axes)
    hardest = lax.dynamic_slice_in_dim(hardest, first, image.shape[0])
    batch = texts.shape[0]
    return (
        lax.psum(loss, axes) / batch,
        lax.psum(image_hits, axes) / batch,
        lax.psum(_hits(positive, hardest), axes) / batch,
    )


def _positives(logits: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the logit of each row's pair, f32[b], and its position, bool[b, B]."""
    columns = first + jnp.arange(logits.shape[0])
    is_pair = columns[:, None] == jnp.arange(logits.shape[1])
    # Not by indexing: its derivative is a scatter into another [b, B].
    return jnp.sum(jnp.where(is_pair, logits, 0), axis=1), is_pair


def _hardest(logits: jax.Array, is_pair: jax.Array, *, axis: int) -> jax.Array:
    """Returns the logit of the hardest negative: the largest that is not a pair's."""
    return jnp.max(jnp.where(is_pair, -jnp.inf, logits), axis=axis)


def _softmax_loss(positive: jax.Array, negatives: jax.Array) -> jax.Array:
    """Returns each row's cross-entropy f32[b].

    It equals the log-sum-exp of all logits minus `positive`, but takes the log-sum-exp
    of the negatives, because that difference cancels: where the positive logit is 100,
    f32 rounds a small loss to zero.
    """
    return jax.nn.softplus(negatives - positive)


def _sigmoid_loss(logits: jax.Array, is_pair: jax.Array) -> jax.Array:
    """Returns each logit's loss: -log sigmoid(logit) for a pair, else of -logit."""
    return jax.nn.softplus(jnp.where(is_pair, -logits, logits))


class _Best(NamedTuple):
    """A running state for the accuracy; leaves f32[rows]."""

    positive: jax.Array  # the logit of the row's pair
    hardest: jax.Array  # the logit of the hardest negative

    @classmethod
    def empty(cls, rows: int) -> "_Best":
        return cls(jnp.zeros(rows), jnp.full(rows, -jnp.inf))

    def add(self, logits: jax.Array, is_pair: jax.Array) -> "_Best":
        """Includes further columns, f32[rows, n]."""
        positive = self.positive + jnp.sum(jnp.where(is_pair, logits, 0), axis=1)
        return _Best(
            positive, jnp.maximum(self.hardest, _hardest(logits, is_pair, axis=1))
        )


class _LogSumExp(NamedTuple):
    """A running log-sum-exp of the negatives; leaves f32[rows]."""

    top: jax.Array  # largest logit
    total: jax.Array  # sum of exp(logit - top)

    @classmethod
    def empty(cls, rows: int) -> "_LogSumExp":
        return cls(jnp.full(rows, _LEAST), jnp.zeros(rows))

    def add(self, logits: jax.Array, is_pair: jax.Array) -> "_LogSumExp":
        """Includes further columns, f32[rows, n]."""
        logits = jnp.where(is_pair, -jnp.inf, logits)
        top = jnp.maximum(self.top, jnp.max(logits, axis=1))
        total = self.total * jnp.exp(self.top - top)
        return _LogSumExp(top, total + jnp.sum(jnp.exp(logits - top[:, None]), axis=1))

    def value(self) -> jax.Array:
        """Returns f32[rows]; -inf for rows without negatives."""
        return self.top + jnp.log(self.total)


class _RingOptions(NamedTuple):
    """Static options of the ring form; see `contrastive_loss`."""

    kind: str
    mesh: Mesh
    axes: Axes
    chunk: int


# A hand-written gradient: JAX's derivative of the loops would save all logits.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _ring(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    options: _RingOptions,
) -> Scalars:
    return _ring_forward(image, text, scale, bias, options)[0]


def _ring_forward(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    options: _RingOptions,
) -> tuple[Scalars, tuple[jax.Array, ...]]:
    """Returns the scalars and the residuals of the backward pass."""
    rows = P(options.axes)
    scalars, *saved = jax.shard_map(
        functools.partial(_forward_rows, options=options),
        mesh=options.mesh,
        in_specs=(rows, rows, P(), P()),
        out_specs=(P(), rows, rows, rows),
    )(image, text, scale, bias)
    return scalars, (image, text, scale, bias, *saved)


def _ring_backward(
    options: _RingOptions, saved: tuple[jax.Array, ...], cotangents: Scalars
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of image, text, scale and bias."""
    rows = P(options.axes)
    gradients = jax.shard_map(
        functools.partial(_backward_rows, options=options),
        mesh=options.mesh,
        in_specs=(rows, rows, P(), P(), rows, rows, rows),
        out_specs=(rows, rows, P(), P()),
    )(*saved)
    return jax.tree.map(lambda gradient: gradient * cotangents[0], gradients)


_ring.defvjp(_ring_forward, _ring_backward)


def _forward_rows(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    *,
    options: _RingOptions,
) -> tuple[Scalars, jax.Array, jax.Array, jax.Array]:
    """Compares the device's images f32[b, E] with every text, a chunk at a time.

    Blocks of texts and their running states go once around the ring and return to
    their device. Returns the scalars, each pair's logit f32[b], and the losses f32[b]
    of each image and of each text; these are zeros for the sigmoid.
    """
    kind, axes = options.kind, options.axes
    count, devices = image.shape[0], lax.axis_size(axes)
    empty = _varying((_Best.empty(count), _LogSumExp.empty(count)), axes)
    no_loss = _varying(jnp.zeros(()), axes)
    split = functools.partial(_chunked, chunk=options.chunk)
    columns = split(jnp.arange(count))
    block = (split(text), jax.tree.map(split, empty))

    def ring_step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        state, (texts, text_states) = carry

        def add_chunk(state: Any, chunk: Any) -> tuple[Any, Any]:
            (best, lse), loss = state
            text, (text_best, text_lse), columns = chunk
            is_pair = (number == 0) & _same(count, columns)
            logits = scale * _dot(image, text) + bias  # [b, n]
            best = best.add(logits, is_pair)
            text_best = text_best.add(logits.T, is_pair.T)
            if kind == "sigmoid":
                loss += jnp.sum(_sigmoid_loss(logits, is_pair))
            else:
                lse = lse.add(logits, is_pair)
                text_lse = text_lse.add(logits.T, is_pair.T)
            return ((best, lse), loss), (text_best, text_lse)

        state, text_states = lax.scan(add_chunk, state, (texts, text_states, columns))
        return (state, _pass_on((texts, text_states), axes)), None

    (((best, lse), loss), (_, text_states)), _ = lax.scan(
        ring_step, ((empty, no_loss), block), jnp.arange(devices)
    )
    text_best, text_lse = jax.tree.map(lambda x: x.reshape(count), text_states)
    batch = count * devices
    image_loss = text_loss = jnp.zeros_like(best.positive)
    if kind == "softmax":
        image_loss = _softmax_loss(best.positive, lse.value())
        text_loss = _softmax_loss(best.positive, text_lse.value())
        loss = jnp.sum(image_loss + text_loss) / 2
    scalars = (
        lax.psum(loss, axes) / batch,
        lax.psum(_hits(*best), axes) / batch,
        lax.psum(_hits(*text_best), axes) / batch,
    )
    return scalars, best.positive, image_loss, text_loss


def _backward_rows(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    positive: jax.Array,
    image_loss: jax.Array,
    text_loss: jax.Array,
    *,
    options: _RingOptions,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Recomputes the logits in the same order; texts travel with their gradient."""
    axes = options.axes
    count, devices = image.shape[0], lax.axis_size(axes)
    split = functools.partial(_chunked, chunk=options.chunk)
    columns = split(jnp.arange(count))
    texts = (split(text), split(positive), split(text_loss))
    zero = _varying(jnp.zeros(()), axes)
    start = (jnp.zeros_like(image), zero, zero)

    def ring_step(carry: Any, number: jax.Array) -> tuple[Any, None]:
        gradients, (texts, text_gradients) = carry

        def add_chunk(gradients: Any, chunk: Any) -> tuple[Any, jax.Array]:
            image_gradient, scale_gradient, bias_gradient = gradients
            (text, text_positive, text_loss), text_gradient, columns = chunk
            is_pair = (number == 0) & _same(count, columns)
            cosine = _dot(image, text)  # [b, n]
            logits = scale * cosine + bias
            if options.kind == "sigmoid":
                slope = _sigmoid_slope(logits, is_pair)
            else:
                slope = _softmax_slope(
                    logits, is_pair, (positive, image_loss), (text_positive, text_loss)
                )
            gradients = (
                image_gradient + _dot(slope, text.T),
                scale_gradient + jnp.sum(slope * cosine),
                bias_gradient + jnp.sum(slope),
            )
            return gradients, text_gradient + _dot(slope.T, image.T)

        gradients, text_gradients = lax.scan(
            add_chunk, gradients, (texts, text_gradients, columns)
        )
        return (gradients, _pass_on((texts, text_gradients), axes)), None

    block = (texts, jnp.zeros_like(texts[0]))
    ((image_gradient, scale_gradient, bias_gradient), block), _ = lax.scan(
        ring_step, (start, block), jnp.arange(devices)
    )
    text_gradient = block[1].reshape(text.shape)
    mean = 1 / (count * devices)
    return (
        image_gradient * scale * mean,
        text_gradient * scale * mean,
        lax.psum(scale_gradient, axes) * mean,
        lax.psum(bias_gradient, axes) * mean,
    )


def _sigmoid_slope(logits: jax.Array, is_pair: jax.Array) -> jax.Array:
    """Returns the derivative of `_sigmoid_loss` by each logit."""
    return jnp.where(is_pair, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))


def _softmax_slope(
    logits: jax.Array,
    is_pair: jax.Array,
    rows: tuple[jax.Array, jax.Array],
    columns: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Returns the derivative of the softmax loss by each logit, f32[b, n].

    It is the mean of a logit's probabilities in its row and in its column, each minus 1
    for a pair: expm1(-loss), without rounding. `rows` f32[b] and `columns` f32[n] are
    the logits of their pairs, and their losses.
    """
    (positive, loss), (column_positive, column_loss) = rows, columns
    at_pair = jnp.expm1(-loss)[:, None] + jnp.expm1(-column_loss)
    at_negative = jnp.exp(logits - positive[:, None] - loss[:, None])
    at_negative += jnp.exp(logits - column_positive - column_loss)
    return jnp.where(is_pair, at_pair / 2, at_negative / 2)


def _chunked(x: jax.Array, chunk: int) -> jax.Array:
    """Splits [b, ...] into [C, n, ...] with the largest n <= chunk that divides b."""
    size = next(n for n in range(min(chunk, len(x)), 0, -1) if len(x) % n == 0)
    return x.reshape(-1, size, *x.shape[1:])


def _same(rows: int, columns: jax.Array) -> jax.Array:
    """Returns bool[rows, n]: where a column's number, of int32[n], is the row's."""
    return columns == jnp.arange(rows)[:, None]


def _pass_on(block: Any, axes: Axes) -> Any:
    """Sends a pytree to the next device of the ring; returns the previous one's."""
    devices = lax.axis_size(axes)
    ring = [(device, (device + 1) % devices) for device in range(devices)]
    return jax.tree.map(lambda x: lax.ppermute(x, axes, ring), block)


def _varying(tree: Any, axes: Axes) -> Any:
    """Marks constants as varying over devices, which the carry of a loop must be."""
    return jax.tree.map(lambda x: lax.pcast(x, axes, to="varying"), tree)


def _hits(positive: jax.Array, hardest: jax.Array) -> jax.Array:
    """Counts the rows, as f32[], whose pair scores above every negative."""
    return jnp.sum(positive > hardest, dtype=jnp.float32)


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a @ b.T, f32[m, n], in full f32 precision also on TPUs and GPUs."""
    return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)
