"""The plan of a curation: its config, checked, and the inputs of each stage."""

import dataclasses
from collections.abc import Mapping

from apache_beam.options.pipeline_options import PipelineOptions
from ml_collections import ConfigDict

from data_prep import config as config_lib
from data_prep import language, schema
from data_prep.images import addresses, safety
from data_prep.metadata import store
from data_prep.sources import kinds, remote
from data_prep.stages import contamination, embedded, parts, pipelines, selection
from metaclip_jax.cli import command


@dataclasses.dataclass(frozen=True)
class Run:
    """The inputs that all pipelines of a run share."""

    config: ConfigDict
    metadata: Mapping[str, store.Metadata]
    options: PipelineOptions
    source: kinds.Spec
    source_files: list[str]
    inputs: dict  # what decides the result; the manifest of a finished folder has it
    match_inputs: dict  # the part of `inputs` that decides the matches
    source_inputs: dict  # the part of `match_inputs` that decides the unsorted matches
    workdir: str
    output: str
    max_failed_sources: int

    @property
    def sizes(self) -> dict[str, int]:
        """Number of entries of each metadata."""
        return {code: len(m.entries) for code, m in self.metadata.items()}


def refuse_anonymous(config: ConfigDict, source: kinds.Spec) -> None:
    """Raises ValueError where images are fetched and `remote.refuse_anonymous` does.

    Hosts of config.download.host_map are one's own.
    """
    is_own = kinds.KINDS[source.kind].images is not None or config.download.host_map
    if not is_own:
        remote.refuse_anonymous(config.download.user_agent)


def plan(
    config: ConfigDict,
    workdir: str | None,
    output: str | None,
    arguments: list[str],
    *,
    workers: str = "auto",
    max_failed_sources: int = 0,
) -> Run:
    """Checks the command line before anything is written; returns the run."""
    keeps_all = config.matching.mode == "none"
    given = {"--config.source.paths": config.source.paths}
    if not keeps_all:
        given["--config.metadata"] = config.metadata
    command.refuse_missing({"--workdir": workdir, "--output": output, **given})
    assert workdir and output
    command.refuse_same_folder(
        {"--workdir": workdir, "--output": output}, parts.FOLDERS
    )
    config_lib.check_curate(config)
    addresses.read_host_map(config.download.host_map)
    language.load_identifier(config.language.identifier)
    safety.models(config)  # refuses one that is not installed
    options = pipelines.options(arguments)
    if keeps_all:
        config = config.copy_and_resolve_references()
        config.balance.rule = "online"  # nothing is drawn
    metadata = store.every_text() if keeps_all else store.load(config.metadata)
    # Without `download`: a run may continue with other limits or addresses.
    values = config.to_dict()
    del values["download"], values["metadata"], values["memory_gib"]
    sources_per_part = values.pop("sources_per_part")
    spec = kinds.spec_of(config)
    paths, prefix = (values["source"].pop(key) for key in ("paths", "prefix"))
    found = kinds.find(paths, spec, prefix=prefix)
    places = [("--workdir", workdir), ("--output", output)]
    places += [("--config.source.paths", path) for path in found]
    for group in ("selection", "duplicates"):
        lists = [v for v in values[group].values() if isinstance(v, tuple | list)]
        places += [(f"--config.{group}", path) for some in lists for path in some]
    pipelines.refuse_local(options, places)
    inputs = {
        "config": values,
        "source": kinds.describe(found, spec),
        "metadata": {code: m.fingerprint for code, m in metadata.items()},
    }
    chosen = selection.inputs(config)
    compared = contamination.inputs(config) | embedded.inputs(config)
    # Leaves out keys that may still change after matching.
    later = ("name", "images", "duplicates", "balance", "safety")
    early = {key: value for key, value in values.items() if key not in later}
    reading = {key: values[key] for key in ("source", "pages", "matching", "language")}
    return Run(
        config=config,
        metadata=metadata,
        source=spec,
        source_files=found,
        options=pipelines.with_workers(
            options, workers, source_bytes=kinds.total_bytes(inputs["source"])
        ),
        inputs=inputs | chosen | compared,
        match_inputs=inputs
        | chosen
        | {
            "config": early
            | {key: values["balance"][key] for key in ("rule", "prefer_high_scores")},
            "columns": schema.MATCHES.names,  # they differ between versions
        },
        source_inputs=inputs
        | {
            "config": reading | {"sources_per_part": sources_per_part},
            "columns": schema.MATCHED.names,
        },
        workdir=workdir,
        output=output,
        max_failed_sources=max_failed_sources,
    )
