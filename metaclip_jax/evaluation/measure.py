"""Scores of the held-out images, again and again, while a model is in training."""

from collections.abc import Callable

from jax.sharding import Mesh

from metaclip_jax import evaluate
from metaclip_jax.data import tokenizer as tokenizers
from metaclip_jax.data.images import Preprocess
from metaclip_jax.evaluation import encoder as encoders
from metaclip_jax.evaluation import evaluator
from metaclip_jax.evaluation import held_out as held_outs
from metaclip_jax.models import clip

Measure = Callable[[clip.Params], dict[str, float]]


def make_measure(
    *,
    held_out: str,
    every_steps: int,
    batch: int,
    keep_best: str,
    architecture: clip.Architecture,
    tokenizer: tokenizers.Tokenizer,
    preprocess: Preprocess,
    mesh: Mesh,
) -> Measure | None:
    """Returns parameters -> scores by name, None where no images or steps are given.

    Args:
        held_out: dataset folder with zero_shot.json.
        every_steps: how often it will be asked; 0 = never.
        batch: images or texts encoded at a time.
        keep_best: the score by which a checkpoint is to be kept; "" = none.
        architecture: of the parameters.
        tokenizer: of the texts.
        preprocess: how images are seen.
        mesh: where the parameters are.

    Raises:
        ValueError: keep_best is no score of these images.
    """
    if not every_steps or not held_out:
        return None
    images = held_outs.load_held_out(held_out)
    if keep_best and keep_best not in evaluate.score_names(images):
        raise ValueError(
            f"checkpoint.keep_best must be one of {evaluate.score_names(images)}, got"
            f" {keep_best!r}"
        )
    encoder = encoders.make_encoder(
        architecture=architecture,
        tokenizer=tokenizer,
        preprocess=preprocess,
        mesh=mesh,
        batch=batch,
        params={},  # come later, again and again
    )

    def measure(params: clip.Params) -> dict[str, float]:
        trained = encoder.with_params(params)
        found = evaluator.scores(
            trained,
            images,
            evaluator.embed(trained, images),
            resamples=1,  # the rows hold no intervals
        )
        return evaluate.flat(found)

    return measure
