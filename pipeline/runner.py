"""Runs a stage: plans it, runs what is not done, finishes the output folder.

Planning needs one listing and no Ray; a stage that is done ends here within milliseconds.
"""

from __future__ import annotations

from collections.abc import Collection

from pipeline import locks, manifest, pulse, session, storage
from pipeline.errors import ConfigError
from pipeline.planning import Plan, make_plan
from pipeline.progress import Progress
from pipeline.runner_options import RunOptions
from pipeline.settings import differences, semantic_config
from pipeline.stage import Stage
from pipeline.summary import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, Summary


def run_stage(
    stage: Stage,
    output: str,
    options: RunOptions | None = None,
    *,
    redo: Collection[int] | None = None,
    resolved: str = "",
) -> Summary:
    """Runs what is not done yet of a stage; prints a progress line; returns what happened.

    Args:
        redo: run the units with these numbers, done or not, and no others.
        resolved: the configuration as YAML, saved beside the output once the plan stands: a refused one
            would say what the folder is not made of.

    Raises:
        ConfigError: before anything was started, or raised by a worker that could not start; or another run
            with other options is under way on the same output.
        RunError: the run could not go on (a full disk, no worker that starts).
    """
    options = options or RunOptions()
    output = storage.absolute(output)
    task = options.parsed_task()
    plan = make_plan(stage, output, overwrite=options.overwrite, limit=options.limit, task=task, redo=redo)
    if resolved:
        manifest.write_config(output, resolved)
    summary = Summary(stage=stage.name, units=len(plan.units), done_before=plan.done)
    progress = Progress(stage.name, len(plan.units), first=plan.done)
    if plan.todo:
        _work(stage, output, options, plan, summary, progress)
    else:
        locks.sweep(output)  # a run that was killed after its last unit
        pulse.sweep(output)
    whole = task is None and options.limit is None
    if whole and not summary.failed and not summary.stopped:
        stage.finish(output)
    summary.exit_code = _exit_code(summary, options)
    progress.close(plan.done + summary.done, summary.detail())
    return summary


def _work(
    stage: Stage, output: str, options: RunOptions, plan: Plan, summary: Summary, progress: Progress
) -> None:
    made_from = {"stage": stage.name, "version": stage.version, "config": semantic_config(stage.config)}
    try:
        with locks.run(output, made_from) as lock:
            sweep(output)
            session.use_token()
            # Importing Ray takes longer than planning a finished stage.
            from pipeline import execution

            execution.execute(stage, output, options, plan, summary, progress, lock)
    except locks.BusyError as error:
        difference = "; ".join(differences(error.facts["made_from"], made_from))
        raise ConfigError(
            f"{output}: another run is at work here ({error}) and makes something else: {difference}. "
            "Wait for it or stop it, or choose another --output"
        ) from error


def sweep(output: str) -> None:
    """Removes what killed writes left in an output folder more than an hour ago."""
    books = storage.join(output, manifest.BOOKS)
    quarantine = storage.join(books, "quarantine")
    local = storage.is_local(output)  # on an object store one look is for all that lies below
    for folder in (output, books, manifest.manifest_folder(output), quarantine) if local else (output,):
        storage.sweep_temporary(folder)
    locks.sweep(output)
    pulse.sweep(output)


def _exit_code(summary: Summary, options: RunOptions) -> int:
    if summary.stopped:
        return EXIT_STOPPED
    return EXIT_FAILED if len(summary.failed) > options.allow_failed else EXIT_DONE
