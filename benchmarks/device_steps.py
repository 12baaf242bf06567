"""Times train steps on a device, with batches that grow until memory is full."""

import contextlib
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import connection
from typing import Any, NamedTuple

import jax

from benchmarks import steps
from metaclip_jax.models import presets
from metaclip_jax.training import compiled, flops, program, sharding, train_state

OURS = "metaclip-jax"
_WARM_STEPS, _ROUNDS = 3, 3


class Device(NamedTuple):
    """The devices that JAX finds; torch uses one."""

    kind: str
    platform: str
    count: int
    peak_flops: float | None  # per second, of one

    @property
    def has_cudnn(self) -> bool:
        """Whether cuDNN's attention can run."""
        return self.platform == "gpu"


class Row(NamedTuple):
    """A timed step, or why it was not timed."""

    library: str
    batch: int  # pairs per device
    attention: str
    remat: str
    unrolled: bool = False
    flops: int = 0  # model FLOPs per pair
    rate: float = 0.0  # pairs per second per device
    memory_bytes: int = 0  # peak of one device
    compile_seconds: float = 0.0
    problem: str = ""  # why it was not timed


def run_alone(function: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """Yields what `function` yields in a separate process, until that ends.

    JAX and torch give memory back only when their process ends.
    """
    spawn = multiprocessing.get_context("spawn")
    receiving, sending = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_send, args=(sending, function))
    process.start()
    sending.close()
    with contextlib.suppress(EOFError):
        while True:
            yield receiving.recv()
    process.join()
    if process.exitcode:
        print(f"a process ended with {process.exitcode}; its rows so far are kept")


def _send(to: connection.Connection, function: Callable[[], Iterable[Any]]) -> None:
    for value in function():
        to.send(value)
    to.close()


def describe() -> Iterator[Device]:
    """Yields once: the devices of this machine."""
    device = jax.devices()[0]
    yield Device(
        kind=device.device_kind,
        platform=device.platform,
        count=jax.device_count(),
        peak_flops=flops.peak(device),
    )


def ours(
    towers: presets.Towers,
    *,
    size: int,
    batches: Sequence[int],
    seconds: float,
    attentions: Sequence[str],
    remats: Sequence[str],
    unrolls: Sequence[bool],
) -> Iterator[Row]:
    """Yields a row per setting and batch, until a batch of the setting does not fit."""
    for way in itertools.product(attentions, remats, unrolls):
        for batch in batches:
            row = Row(OURS, batch, *way)
            row = _our_row(row, towers, size=size, seconds=seconds)
            yield row
            if row.problem:
                break


def _our_row(row: Row, towers: presets.Towers, *, size: int, seconds: float) -> Row:
    batch = row.batch * jax.device_count()
    config = steps.config_of(towers, batch=batch, size=size)
    config.model.attention, config.model.remat = row.attention, row.remat
    config.model.unroll = row.unrolled
    asked = program.make(
        config, vocab_size=steps.VOCABULARY, eos_id=steps.EOS, pad_id=0
    )
    try:
        start = time.perf_counter()
        step = program.lower(asked, config).compile()
        row = row._replace(
            flops=program.model_flops(asked, config) // batch,
            compile_seconds=time.perf_counter() - start,
            memory_bytes=compiled.total_bytes(step.memory_analysis()),
        )
        limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
        if limit and row.memory_bytes > limit:
            return row._replace(problem="does not fit")
        state = train_state.create(
            architecture=asked.architecture,
            optimizer=asked.optimizer,
            mesh=asked.mesh,
            seed=0,
        )
        arrays = sharding.put_batch(
            asked.mesh, steps.make_batch(batch=batch, size=size)
        )

        def run(count: int) -> None:
            nonlocal state
            for _ in range(count):
                state, metrics = step(state, arrays)
            assert float(metrics["skipped"]) == 0, "a step was not finite"

        return row._replace(rate=row.batch / _seconds_a_step(run, at_least=seconds))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return row._replace(problem="does not fit")


def theirs(
    towers: presets.Towers,
    *,
    size: int,
    batches: Sequence[int],
    seconds: float,
    remats: Sequence[str],
) -> Iterator[Row]:
    """Yields a row of torch per remat and batch, until a batch does not fit."""
    import torch

    library = steps.torch_library()
    for remat in remats:
        for batch in batches:
            row = Row(library, batch, "fused", remat)
            try:
                row = _their_row(row, towers, size=size, seconds=seconds)
            except torch.OutOfMemoryError:
                row = row._replace(problem="does not fit")
            yield row
            if row.problem:
                break


def _their_row(row: Row, towers: presets.Towers, *, size: int, seconds: float) -> Row:
    import torch

    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    torch.set_float32_matmul_precision("high")
    torch.compiler.reset()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    encode, model = _their_encoder(row, towers, size=size)
    model.to(device).train()
    optimizer = steps.optimizer_of(model, fused=cuda)
    batch = steps.make_batch(batch=row.batch, size=size)
    images = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2)
    images = (images.to(torch.bfloat16) / 255).contiguous()
    tokens = torch.from_numpy(batch["tokens"]).long().to(device)
    labels = torch.arange(row.batch, device=device)

    def loss_of(images: Any, tokens: Any) -> Any:
        image, text, scale = encode(images, tokens)
        logits = scale * image @ text.T
        entropy = torch.nn.functional.cross_entropy
        return (entropy(logits, labels) + entropy(logits.T, labels)) / 2

    if cuda:  # on CPUs it would need a C++ compiler
        loss_of = torch.compile(loss_of, dynamic=False)

    def run(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16):
                loss = loss_of(images, tokens)
            loss.backward()
            optimizer.step()
        assert torch.isfinite(loss).item(), "a step was not finite"

    start = time.perf_counter()
    run(1)
    first = time.perf_counter() - start
    rate = row.batch / _seconds_a_step(run, at_least=seconds)
    return row._replace(
        rate=rate,
        memory_bytes=torch.cuda.max_memory_allocated() if cuda else 0,
        compile_seconds=first,
    )


def _their_encoder(
    row: Row, towers: presets.Towers, *, size: int
) -> tuple[Callable[..., Any], Any]:
    """Returns (images, tokens) -> unit embeddings and logit scale; and the model."""
    if row.library == "open_clip":
        model = steps.open_clip_model(towers, size=size)
        model.set_grad_checkpointing(row.remat == "full")
        return model, model
    model = steps.transformers_model(towers, size=size)
    if row.remat == "full":
        model.gradient_checkpointing_enable()

    def encode(images: Any, tokens: Any) -> tuple[Any, Any, Any]:
        found = model(input_ids=tokens, pixel_values=images)
        return found.image_embeds, found.text_embeds, model.logit_scale.exp()

    return encode, model


def _seconds_a_step(run: Callable[[int], None], *, at_least: float) -> float:
    """Returns the median over rounds; run(count) runs that many steps and waits."""
    run(_WARM_STEPS)
    one = steps.timed(lambda: run(1))
    count = max(round(at_least / _ROUNDS / one), 1)
    return statistics.median(
        steps.timed(lambda: run(count)) / count for _ in range(_ROUNDS)
    )


def take_all_memory() -> None:
    """Lets JAX use 95% of a GPU's memory instead of 75%; call before JAX starts."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
