"""Beam's pipeline options, as `curate` takes them after `--`."""

import pytest

from data_prep.stages import pipelines


def runner_of(*arguments):
    return pipelines.options(arguments).get_all_options()["runner"]


def test_the_default_runner_is_in_this_process():
    assert runner_of() == runner_of("--direct_num_workers=2") == "FnApiRunner"


def test_options_of_beam_are_passed_on():
    options = pipelines.options(["--runner", "DataflowRunner", "--region=us-east1"])
    found = options.get_all_options()
    assert (found["runner"], found["region"]) == ("DataflowRunner", "us-east1")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--direct_num_worker=2"], "got '--direct_num_worker=2'; did you mean"),
        (["--runer=FlinkRunner"], "did you mean --runner"),
        (["--runner=FnApiRunner", "--no_such_thing_qqq"], "correct or remove it"),
        (["runner=FnApiRunner"], "got 'runner=FnApiRunner'"),
        (["--direct_num_workers=many"], "invalid int value: 'many'"),
        (["--runner"], "expected one argument"),
        (["--runner=DaskRunner"], "entry counts would be wrong"),
        (["--runner=FnApiRuner"], "got 'FnApiRuner'; did you mean FnApiRunner?"),
    ],
)
def test_what_beam_would_ignore_is_refused(arguments, message):
    with pytest.raises(ValueError, match="^wanted") as found:
        pipelines.options(arguments)
    assert message in str(found.value) and "\n" not in str(found.value)


def test_job_servers_have_options_of_their_own():
    for name in ("FlinkRunner", "flink"):
        assert runner_of(f"--runner={name}", "--no_such_thing=1") == name
