"""A warm process that has imported all that a stage needs, and forks a child for each trial.

The child carries out the asset's own plan with its own store, under its lease, as the IO manager does.
"""

import importlib
import json
import os
import pickle
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import cache


def carry_out(asset, partition):
    """Make one partition as its IO manager does, without Dagster's run."""
    from sam_laplace_assets.storage.lease import held

    settings, project, manager = _surroundings(asset)
    plan = _plan(asset, partition, settings)
    with held(project.lease(asset, partition), holder="a trial", waiting=lambda holder: None):
        outcome = _make(plan, manager.store(project, partition))
        plan.report(outcome.records)
    return {"made": outcome.made, "reused": outcome.reused, "failed": outcome.failed, "version": outcome.data_version}


def _make(plan, store):
    from sam_laplace_assets.domain.plan import Plan
    from sam_laplace_assets.storage.materialise import materialise, run_course
    from sam_laplace_assets_tests.storage.fakes import quiet

    if isinstance(plan, Plan):
        return materialise(plan, store, progress=quiet)
    return run_course(plan, store, progress=quiet, step=lambda state: None)


def look(asset, partition):
    """What is there: to a reader, to the next run, and on the disk."""
    from sam_laplace_assets.domain.plan import Plan, missing
    from sam_laplace_assets_tests.faults import reading

    settings, project, manager = _surroundings(asset)
    plan, store = _plan(asset, partition, settings), manager.store(project, partition)
    records = store.records(plan.items)
    lacking = {item.key: parts for item, parts in missing(plan, records)}
    whole = [item for item in plan.items if item.key not in lacking]
    weight = plan.weight if isinstance(plan, Plan) else lambda item, parts: 1
    return {
        "read": reading.read_to_the_end(asset, partition, settings, project, manager),
        "records": {key: dict(record.contents) for key, record in records.items()},
        "wanted": sum(weight(item, frozenset(item.parts)) for item in plan.items),
        "lacking": sum(weight(item, lacking[item.key]) for item in plan.items if item.key in lacking),
        "finished": not lacking and store.finished(plan, records),
        "files": reading.files_of_items(store, whole),
        "disk": reading.on_disk(project.root),
        "names": sorted(path.name for path in project.root.rglob("*") if path.is_file()),
        "epochs": _epochs(store, plan),
    }


def _epochs(store, plan):
    """Epochs of a head that are saved; None of anything else."""
    from sam_laplace_assets.domain.plan import Plan
    from sam_laplace_assets.storage import files

    if isinstance(plan, Plan):
        return None
    state = store.locate(plan.item) / "epoch_state.json"
    return files.read_json(state)["epoch"] if state.exists() else 0


def go_on(asset, partition):
    """What is there after a death, what the next run makes of it, and what is there then."""
    found = look(asset, partition)
    outcome = carry_out(asset, partition)
    return {"found": found, "outcome": outcome, "end": look(asset, partition), "again": carry_out(asset, partition)}


def read(asset, partition):
    """What a reader gets of one partition."""
    from sam_laplace_assets_tests.faults.reading import read_to_the_end

    settings, project, manager = _surroundings(asset)
    return read_to_the_end(asset, partition, settings, project, manager)


def _surroundings(asset):
    from sam_laplace_assets.assets.graph import BY_NAME
    from sam_laplace_assets.freshness import _io_manager
    from sam_laplace_assets.settings import load_settings
    from sam_laplace_assets.storage.project import Project

    settings = load_settings()
    return settings, Project.of(settings), _io_manager(BY_NAME[asset])


def _plan(asset, partition, settings):
    from sam_laplace_assets.assets.graph import BY_NAME
    from sam_laplace_assets.freshness import wanted_plan

    return wanted_plan(BY_NAME[asset], partition, settings, _instance(), {})


@cache
def _instance():
    """An instance in memory, of which each child has its own copy."""
    import dagster as dg

    return dg.DagsterInstance.ephemeral()


TASKS = {one.__name__: one for one in (carry_out, look, go_on, read)}


def in_place(contents):
    """`write_set` of one who does not know better."""
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def without_sync(path):
    """`sync` of one who trusts the disk."""


FAULTS = {"in place": ("write_set", in_place), "without sync": ("sync", without_sync)}
"""What a storage layer may do wrong, to see that it is noticed."""


def nurse():
    """Carry out what is asked on the standard input, each in a child of its own, and tell how that ended."""
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    _warm_up()
    while asked := sys.stdin.readline():
        told = _in_a_child(json.loads(asked))
        for name in told.pop("modules", ()):
            with suppress(Exception):
                importlib.import_module(name)
        pickle.dump(told, answers)
        answers.flush()


def _warm_up():
    """Import what all stages need, once, and have small work be done in small steps."""
    import gc

    import pytest
    import torch

    import sam_laplace_assets.definitions  # noqa: F401
    import sam_laplace_assets_tests.faults.reading  # noqa: F401
    from sam_laplace_assets.storage import lease, pack, store
    from sam_laplace_assets_tests.small_project import draw_plainly

    torch.set_num_threads(1)
    draw_plainly(pytest.MonkeyPatch())
    store.SECONDS_BETWEEN_SAVES = 0.0
    pack.ROWS_PER_SHARD = 2
    lease.SECONDS_OF_SILENCE, lease.SECONDS_BETWEEN_LOOKS = 0.2, 0.02  # a lease that was cut to half names no process
    _instance()
    gc.freeze()


def _in_a_child(asked):
    began = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _live(asked, writer)
    os.close(writer)
    content = _hear_out(child, reader, asked.get("kill_after"))
    _, status = os.waitpid(child, 0)
    told = pickle.loads(content) if content and os.waitstatus_to_exitcode(status) in (0, 1) else {}
    return {"status": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - began, **told}


def _hear_out(child, reader, kill_after):
    """All that a child says; it is killed after so many seconds."""
    if kill_after is not None and not select.select([reader], [], [], kill_after)[0]:
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as told:
        return told.read()


def _live(asked, writer):
    """One life: from a task to its end, whichever that is."""
    from sam_laplace_assets.settings import load_settings
    from sam_laplace_assets.storage import files
    from sam_laplace_assets_tests.faults.dying import Fate, await_fate

    there = set(sys.modules)
    try:
        root = load_settings().data.project_root
        fate = Fate(root, asked.get("at"), asked.get("power", False))
        if "fault" in asked:
            setattr(files, *FAULTS[asked["fault"]])
        if "at" in asked:
            await_fate(fate)
        told = {"result": TASKS[asked["task"]](*asked["of"]), "events": fate.events}
        told["modules"] = sorted(set(sys.modules) - there)
        status = 0
    except BaseException:
        told, status = {"error": traceback.format_exc()}, 1
    with os.fdopen(writer, "wb") as pipe:
        pickle.dump(told, pipe)
    os._exit(status)


if __name__ == "__main__":
    nurse()
