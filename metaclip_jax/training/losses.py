"""The contrastive loss, exact over the whole batch, on any number of devices.

Two losses: CLIP's symmetric softmax, and SigLIP's sigmoid (arXiv 2303.15343), which
asks of each pair by itself whether it is one. Each in two forms, inside
`jax.shard_map`, which leave embeddings split over devices. The gathered form collects
all of them on each device and computes the device's rows of logits. The ring form
passes blocks of texts from device to device and never holds more than one chunk of
logits, forward or backward; it computes each logit once where the gathered softmax does
twice.
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

_LEAST = float(jnp.finfo(jnp.float32).min)  # finite, so that differences are numbers

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
    """The loss of a batch against itself, and accuracies.

    Embeddings are f32[B, E] of unit norm, row i of both being a pair, B divisible by
    the devices along batch_axes. Logits are logit_scale f32[] times their cosines plus
    logit_bias f32[]. The softmax loss is the mean cross-entropy over rows and columns,
    which no bias changes; the sigmoid loss is the sum of all logits' losses by B. The
    accuracies, f32[], are the shares of images (texts) whose own text (image) scores
    higher than every other; a tie is a miss. `chunk` is how many columns of logits
    the ring form computes at a time.

    Raises:
        ValueError: shapes differ, or `check` refuses the rest.
    """
    if image.ndim != 2 or image.shape != text.shape:
        raise ValueError(
            f"embeddings must be two [B, E] of one shape, got {image.shape} and "
            f"{text.shape}"
        )
    check(kind=kind, form=form, chunk=chunk)
    bias = jnp.asarray(logit_bias, jnp.float32)
    if form == "ring":
        scalars = _ring(image, text, logit_scale, bias, kind, mesh, batch_axes, chunk)
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
    """Refuses a loss that there is not, before anything is computed.

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
    """One device's rows f32[b, E] against everybody's, summed over devices."""
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
    """Sums over rows of f32[b, B]; row i's own column is first + i."""
    own, is_own = _own(logits, first)
    rivals = jax.nn.logsumexp(jnp.where(is_own, _LEAST, logits), axis=1)
    loss = jnp.sum(_softmax_loss(own, rivals))
    return loss, _hits(own, _rival(logits, is_own, axis=1))


def _gathered_sigmoid(
    image: jax.Array, text: jax.Array, scale: jax.Array, bias: jax.Array, *, axes: Axes
) -> Scalars:
    """One device's images f32[b, E] against everybody's texts, summed over devices."""
    texts = lax.all_gather(text, axes, tiled=True)  # [B, E]
    first = lax.axis_index(axes) * image.shape[0]
    logits = scale * _dot(image, texts) + bias  # [b, B]
    own, is_own = _own(logits, first)
    loss = jnp.sum(_sigmoid_loss(logits, is_own))
    image_hits = _hits(own, _rival(logits, is_own, axis=1))
    # A text's rivals are on all devices.
    logits = lax.stop_gradient(logits)
    rival = lax.pmax(_rival(logits, is_own, axis=0), axes)
    rival = lax.dynamic_slice_in_dim(rival, first, image.shape[0])
    batch = texts.shape[0]
    return (
        lax.psum(loss, axes) / batch,
        lax.psum(image_hits, axes) / batch,
        lax.psum(_hits(own, rival), axes) / batch,
    )


def _own(logits: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Each row's own logit, f32[b], and where it is, bool[b, B]."""
    columns = first + jnp.arange(logits.shape[0])
    is_own = columns[:, None] == jnp.arange(logits.shape[1])
    # Not by index: the derivative of that would scatter into one more [b, B].
    return jnp.sum(jnp.where(is_own, logits, 0), axis=1), is_own


def _rival(logits: jax.Array, is_own: jax.Array, *, axis: int) -> jax.Array:
    """The largest logit but the own one."""
    return jnp.max(jnp.where(is_own, -jnp.inf, logits), axis=axis)


def _softmax_loss(own: jax.Array, rivals: jax.Array) -> jax.Array:
    """Each row's loss from its own logit and the log-sum-exp of all others, f32[b].

    It is log-sum-exp of all minus own, without the rounding of that difference: where
    own is 100 and the loss next to nothing, f32 would leave nothing of it.
    """
    return jax.nn.softplus(rivals - own)


def _sigmoid_loss(logits: jax.Array, is_own: jax.Array) -> jax.Array:
    """Each logit's own loss: -log sigmoid of it, or of its negative if no pair."""
    return jax.nn.softplus(jnp.where(is_own, -logits, logits))


class _Best(NamedTuple):
    """What accuracy needs of some rows of logits; leaves f32[rows]."""

    own: jax.Array  # the logit of the row's own pair
    rival: jax.Array  # largest logit but that

    @classmethod
    def unknown(cls, rows: int) -> "_Best":
        return cls(jnp.zeros(rows), jnp.full(rows, -jnp.inf))

    def add(self, logits: jax.Array, is_own: jax.Array) -> "_Best":
        """Takes in f32[rows, n] more logits."""
        own = self.own + jnp.sum(jnp.where(is_own, logits, 0), axis=1)
        return _Best(own, jnp.maximum(self.rival, _rival(logits, is_own, axis=1)))


class _LogSumExp(NamedTuple):
    """The softmax's denominator so far, without the own logit; leaves f32[rows]."""

    top: jax.Array  # largest logit
    total: jax.Array  # sum of exp(logit - top)

    @classmethod
    def unknown(cls, rows: int) -> "_LogSumExp":
        return cls(jnp.full(rows, _LEAST), jnp.zeros(rows))

    def add(self, logits: jax.Array, is_own: jax.Array) -> "_LogSumExp":
        """Takes in f32[rows, n] more logits."""
        logits = jnp.where(is_own, -jnp.inf, logits)
        top = jnp.maximum(self.top, jnp.max(logits, axis=1))
        total = self.total * jnp.exp(self.top - top)
        return _LogSumExp(top, total + jnp.sum(jnp.exp(logits - top[:, None]), axis=1))

    def value(self) -> jax.Array:
        """Returns f32[rows]; -inf for rows that met none."""
        return self.top + jnp.log(self.total)


# The derivative is by hand: that of the loops would save every block of logits.
@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _ring(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    kind: str,
    mesh: Mesh,
    axes: Axes,
    chunk: int,
) -> Scalars:
    return _ring_forward(image, text, scale, bias, kind, mesh, axes, chunk)[0]


def _ring_forward(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    kind: str,
    mesh: Mesh,
    axes: Axes,
    chunk: int,
) -> tuple[Scalars, tuple[jax.Array, ...]]:
    """Returns the scalars, and what the backward pass reads."""
    rows = P(axes)
    scalars, *saved = jax.shard_map(
        functools.partial(_forward_rows, kind=kind, axes=axes, chunk=chunk),
        mesh=mesh,
        in_specs=(rows, rows, P(), P()),
        out_specs=(P(), rows, rows, rows),
    )(image, text, scale, bias)
    return scalars, (image, text, scale, bias, *saved)


def _ring_backward(
    kind: str,
    mesh: Mesh,
    axes: Axes,
    chunk: int,
    saved: tuple[jax.Array, ...],
    cotangents: Scalars,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of image, text, scale and bias."""
    rows = P(axes)
    gradients = jax.shard_map(
        functools.partial(_backward_rows, kind=kind, axes=axes, chunk=chunk),
        mesh=mesh,
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
    kind: str,
    axes: Axes,
    chunk: int,
) -> tuple[Scalars, jax.Array, jax.Array, jax.Array]:
    """One device's images f32[b, E] meet every text, a chunk at a time.

    Texts travel with what is known about them, and are home again at the end. Returns
    the scalars and f32[b] each pair's own logit, and for the softmax the loss of each
    image and of each text, zeros for the sigmoid.
    """
    count, devices = image.shape[0], lax.axis_size(axes)
    unknown = _varying((_Best.unknown(count), _LogSumExp.unknown(count)), axes)
    no_loss = _varying(jnp.zeros(()), axes)
    split = functools.partial(_chunked, chunk=chunk)
    columns = split(jnp.arange(count))
    travelling = (split(text), jax.tree.map(split, unknown))

    def hop(state: Any, number: jax.Array) -> tuple[Any, None]:
        here, (texts, texts_known) = state

        def meet(here: Any, block: Any) -> tuple[Any, Any]:
            (best, lse), loss = here
            text, (text_best, text_lse), columns = block
            is_own = (number == 0) & _same(count, columns)
            logits = scale * _dot(image, text) + bias  # [b, n]
            best = best.add(logits, is_own)
            text_best = text_best.add(logits.T, is_own.T)
            if kind == "sigmoid":
                loss += jnp.sum(_sigmoid_loss(logits, is_own))
            else:
                lse = lse.add(logits, is_own)
                text_lse = text_lse.add(logits.T, is_own.T)
            return ((best, lse), loss), (text_best, text_lse)

        here, texts_known = lax.scan(meet, here, (texts, texts_known, columns))
        return (here, _pass_on((texts, texts_known), axes)), None

    (((best, lse), loss), (_, texts_known)), _ = lax.scan(
        hop, ((unknown, no_loss), travelling), jnp.arange(devices)
    )
    text_best, text_lse = jax.tree.map(lambda x: x.reshape(count), texts_known)
    batch = count * devices
    image_loss = text_loss = jnp.zeros_like(best.own)
    if kind == "softmax":
        image_loss = _softmax_loss(best.own, lse.value())
        text_loss = _softmax_loss(best.own, text_lse.value())
        loss = jnp.sum(image_loss + text_loss) / 2
    scalars = (
        lax.psum(loss, axes) / batch,
        lax.psum(_hits(*best), axes) / batch,
        lax.psum(_hits(*text_best), axes) / batch,
    )
    return scalars, best.own, image_loss, text_loss


def _backward_rows(
    image: jax.Array,
    text: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    own: jax.Array,
    image_loss: jax.Array,
    text_loss: jax.Array,
    *,
    kind: str,
    axes: Axes,
    chunk: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The same journey again; texts travel with their gradient."""
    count, devices = image.shape[0], lax.axis_size(axes)
    split = functools.partial(_chunked, chunk=chunk)
    columns = split(jnp.arange(count))
    texts = (split(text), split(own), split(text_loss))
    zero = _varying(jnp.zeros(()), axes)
    start = (jnp.zeros_like(image), zero, zero)

    def hop(state: Any, number: jax.Array) -> tuple[Any, None]:
        gradients, (texts, text_gradients) = state

        def meet(gradients: Any, block: Any) -> tuple[Any, jax.Array]:
            image_gradient, scale_gradient, bias_gradient = gradients
            (text, text_own, text_loss), text_gradient, columns = block
            is_own = (number == 0) & _same(count, columns)
            cosine = _dot(image, text)  # [b, n]
            logits = scale * cosine + bias
            if kind == "sigmoid":
                pull, push = -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits)
            else:
                # Probabilities, and of the own ones what they lack of 1.
                pull = jnp.expm1(-image_loss)[:, None] + jnp.expm1(-text_loss)
                push = jnp.exp(logits - own[:, None] - image_loss[:, None])
                push += jnp.exp(logits - text_own - text_loss)
                pull, push = pull / 2, push / 2
            slope = jnp.where(is_own, pull, push)
            gradients = (
                image_gradient + _dot(slope, text.T),
                scale_gradient + jnp.sum(slope * cosine),
                bias_gradient + jnp.sum(slope),
            )
            return gradients, text_gradient + _dot(slope.T, image.T)

        gradients, text_gradients = lax.scan(
            meet, gradients, (texts, text_gradients, columns)
        )
        return (gradients, _pass_on((texts, text_gradients), axes)), None

    travelling = (texts, jnp.zeros_like(texts[0]))
    ((image_gradient, scale_gradient, bias_gradient), travelling), _ = lax.scan(
        hop, (start, travelling), jnp.arange(devices)
    )
    text_gradient = travelling[1].reshape(text.shape)
    mean = 1 / (count * devices)
    return (
        image_gradient * scale * mean,
        text_gradient * scale * mean,
        lax.psum(scale_gradient, axes) * mean,
        lax.psum(bias_gradient, axes) * mean,
    )


def _chunked(x: jax.Array, chunk: int) -> jax.Array:
    """Splits [b, ...] into [C, n, ...] with the largest n <= chunk that divides b."""
    size = next(n for n in range(min(chunk, len(x)), 0, -1) if len(x) % n == 0)
    return x.reshape(-1, size, *x.shape[1:])


def _same(rows: int, columns: jax.Array) -> jax.Array:
    """Returns bool[rows, n]: whether a column int32[n] has the row's number."""
    return columns == jnp.arange(rows)[:, None]


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
