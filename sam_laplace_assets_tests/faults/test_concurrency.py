"""Processes that work on one project at once: one waits for the other, and no reader sees anything half done."""

import sqlite3

import pyarrow as pa
import pytest

from sam_laplace_assets.domain.plan import Item, Plan, digest
from sam_laplace_assets.storage.index import PART as TABLE
from sam_laplace_assets.storage.index import SCHEMA, IndexStore
from sam_laplace_assets.storage.ledger import Entry, Ledger, Record
from sam_laplace_assets.storage.pack import PackStore
from sam_laplace_assets.storage.shards import ARRAYS, NUMBERS, PackedSample
from sam_laplace_assets_tests.faults.concurrent import (
    READY,
    Rival,
    all_stopped,
    integrity,
    leases_of,
    made_in_all,
    report_of,
    started_together,
)
from sam_laplace_assets_tests.faults.figures import keep
from sam_laplace_assets_tests.faults.provenance import tiny
from sam_laplace_assets_tests.small_project import add_sample, draw_plainly
from sam_laplace_assets_tests.storage.fakes import KEYS, make
from sam_laplace_assets_tests.storage.tables_of import index_frame

pytestmark = pytest.mark.timeout(420)
GROUP = "concurrency"
FEATURES = ("manifest", "prompt_sets", "sam_cache", "training_index", "hdf5_pack")


# Runs on one project.


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The tiny project, made by one process."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_plainly(monkeypatch)
        project = tiny(tmp_path_factory.mktemp("undisturbed")).use(monkeypatch)
        project.refresh()
        return project


def contents(project):
    """Data versions of everything; those of pictures that were drawn otherwise are left out."""
    return {one: version for one, version in project.versions().items() if one[0] != "sanity_panels"}


@pytest.mark.faults
def test_of_two_runs_at_once_one_waits_and_nothing_is_made_twice(undisturbed, tmp_path, monkeypatch):
    project = tiny(tmp_path).use(monkeypatch)
    rivals = [Rival.running(project), Rival.running(project)]
    with all_stopped(*rivals):
        said = [one.ends() for one in rivals]
    assert any("is being written by run " in one or "Waiting for pool gpu" in one for one in said), said
    assert contents(project) == contents(undisturbed)
    assert made_in_all(project) == made_in_all(undisturbed)
    assert leases_of(project) == []
    assert set(integrity(project.folder / "dagster_home").values()) == {"ok"}
    keep("two runs of everything at once", group=GROUP, tried=2, survived=2,
         gets="the second waits and says for whom; nothing is made twice")  # fmt: skip


@pytest.mark.faults
def test_two_partitions_are_made_at_once(undisturbed, tmp_path, monkeypatch):
    project = tiny(tmp_path).use(monkeypatch)
    project.refresh(assets=["all_samples"])
    assets = [word for name in FEATURES for word in ("--asset", name)]
    rivals = [Rival.running(project, "--split", split, *assets) for split in ("train", "val")]
    with all_stopped(*rivals):
        for one in rivals:
            one.ends()
    for split in ("train", "val"):
        for name in FEATURES:
            assert project.version(name, split) == undisturbed.version(name, split)
    assert leases_of(project) == []
    keep("two partitions at once", group=GROUP, tried=2, survived=2, gets="both are made, as one after the other")


# A reader while what it reads is replaced.

READS_PACK = """
import json, sys
from pathlib import Path
from sam_laplace_assets.storage.pack import Pack, PackRefused
from sam_laplace_assets.storage.rows import load_rows
path, stop = Path(sys.argv[1]), Path(sys.argv[2])
found = {"reads": 0, "refused": 0, "mixed": [], "seen": []}
print("reading", flush=True)
while not stop.exists():
    try:
        pack = Pack.open(path)
        rows = load_rows(pack)
    except PackRefused as error:  # says that it was replaced, and to run again
        found["refused"] += 1
        assert "Run again" in str(error), error
        continue
    inputs, _ = rows.read(range(len(rows)))
    values = sorted({float(one) for one in inputs.unique()})
    found["reads"] += 1
    if len(values) != 1 or set(pack.n_pos.tolist()) != {int(values[0])}:
        found["mixed"].append([values, pack.n_pos.tolist()])
    found["seen"].append(values[0])
found["seen"] = len(set(found["seen"]))
print(json.dumps(found))
"""
READS_TABLE = """
import json, sys
from pathlib import Path
from sam_laplace_assets.storage.index import IndexStore, read_index
from sam_laplace_assets.domain.plan import Item
stem, stop, table_format = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
found = {"reads": 0, "mixed": [], "seen": set()}
print("reading", flush=True)
while not stop.exists():
    frame, complete = read_index(stem, table_format, split="val")
    values = set(frame["k_pairs"])
    found["reads"] += 1
    if len(values) != 1 or complete != bool(min(values) % 2):
        found["mixed"].append([sorted(values), complete])
    found["seen"] |= values
    for record in IndexStore(stem, table_format).records([Item("val", {})]).values():
        if record.contents["table"] != str(record.summary["mean_k_pairs"]):
            found["mixed"].append([dict(record.contents), dict(record.summary)])
found["seen"] = len(found["seen"])
print(json.dumps(found, default=str))
"""
READS_LEDGER = """
import json, sys
from pathlib import Path
from sam_laplace_assets.storage.ledger import Ledger
path, stop = Path(sys.argv[1]), Path(sys.argv[2])
found = {"reads": 0, "mixed": [], "seen": set()}
print("reading", flush=True)
while not stop.exists():
    ledger = Ledger.load(path)
    values = {entry.record.summary["value"] for entry in ledger.entries.values()}
    found["reads"] += 1
    if len(values) != 1 or ledger.data_version != str(min(values)):
        found["mixed"].append([sorted(values), ledger.data_version])
    found["seen"] |= values
found["seen"] = len(found["seen"])
print(json.dumps(found))
"""
TIMES = 30


def read_while(script, replace, *arguments, stop, times=TIMES):
    """What a reader in a process of its own found while something was replaced again and again."""
    replace(1)
    reader = Rival.of_script(script, *arguments)
    with all_stopped(reader):
        assert reader.process.stdout.readline() == "reading\n"
        for value in range(2, times + 2):
            replace(value)
        stop.touch()
        return report_of(reader.ends())


def rows_of(value):
    """A plan of a pack that holds one number in all its rows."""
    items = [Item(key, {"rows": digest([key, value])}) for key in KEYS]

    def read(item, parts):
        import numpy as np

        arrays = {name: np.full((2, 256, 256), value, dtype=np.float16) for name in ARRAYS}
        numbers = {name: [value, value] for name in NUMBERS} | {"promptset_id": [0, 1]}
        return PackedSample(arrays, numbers, np.ones((256, 256), dtype=bool))

    return Plan(items, make=read)


def table_of(value):
    """A plan of an index whose rows, note and summary say one number, and whether that is odd."""
    frame = index_frame(KEYS).assign(k_pairs=value)
    summary = str(float(value))
    item = Item("val", {TABLE: digest(value)}, (summary, bool(value % 2)))
    return Plan([item], make=lambda item, parts: pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False))


def test_who_reads_a_pack_while_it_is_replaced_gets_one_or_the_other(tmp_path):
    found = read_while(READS_PACK, lambda value: make(rows_of(value), PackStore(tmp_path, "val")),
                       tmp_path / "val.h5", tmp_path / "stop", stop=tmp_path / "stop")  # fmt: skip
    assert found["mixed"] == []
    assert found["seen"] > 3
    keep("a pack replaced while it is read", group=GROUP, tried=TIMES, survived=TIMES,
         gets="a whole pack, the old or the new one, or the word to run again")  # fmt: skip


@pytest.mark.parametrize("table_format", ["parquet", "csv"])
def test_who_reads_an_index_while_it_is_replaced_gets_one_or_the_other(tmp_path, table_format):
    stem, stop = tmp_path / "index", tmp_path / "stop"
    found = read_while(READS_TABLE, lambda value: make(table_of(value), IndexStore(stem, table_format)), stem, stop,
                       table_format, stop=stop, times=150)  # fmt: skip
    assert found["mixed"] == []
    assert found["seen"] > 3
    keep(f"an index as {table_format} replaced while it is read", group=GROUP, tried=150, survived=150,
         gets="a whole table with its own note")  # fmt: skip


def test_who_reads_a_ledger_while_it_is_replaced_gets_one_or_the_other(tmp_path):
    path = tmp_path / "val.ledger.parquet"

    def replace(value):
        entries = {key: Entry("", Record({}, {}, {"value": value})) for key in KEYS}
        Ledger(path, entries, complete=True, data_version=str(value)).save()

    found = read_while(READS_LEDGER, replace, path, tmp_path / "stop", stop=tmp_path / "stop", times=150)
    assert found["mixed"] == []
    assert found["seen"] > 3
    keep("a ledger replaced while it is read", group=GROUP, tried=150, survived=150,
         gets="the entries and the note of one writing")  # fmt: skip


# Databases that many write.

OPENS_MLFLOW = f"""{READY}
from sam_laplace_assets.resources.tracking import start
from sam_laplace_assets.settings import Settings
import mlflow
folders = [Path(one) for one in sys.argv[1:]]
for at, folder in enumerate(folders):
    settings = Settings.model_validate({{
        "data": {{"images_root": "i", "masks_root": "m", "project_root": "p"}}, "sam": {{"model_type": "toy"}},
        "mlflow": {{"tracking_uri": f"sqlite:///{{folder / 'mlflow.db'}}"}}}})
    ready(folder)
    run = start(settings, "sam_cache[val]", {{"rival": str(os.getpid())}})
    run.attempt(lambda client: client.set_terminated(run.run_id))
    assert run.problems == [], run.problems
"""


def tracked(folder):
    """Runs and experiments of an MLflow database."""
    with sqlite3.connect(folder / "mlflow.db") as connection:
        runs = connection.execute("SELECT status FROM runs").fetchall()
        names = connection.execute("SELECT name FROM experiments").fetchall()
    return [status for (status,) in runs], sorted(name for (name,) in names)


@pytest.mark.faults
def test_two_processes_make_one_mlflow_database(tmp_path):
    times = 10
    folders = [tmp_path / str(number) for number in range(times)]
    for folder in folders:
        folder.mkdir()
    rivals = [Rival.of_script(OPENS_MLFLOW, *folders) for _ in range(2)]
    with all_stopped(*rivals):
        for folder in folders:
            started_together(folder, 2)
        for one in rivals:
            one.ends()
    for folder in folders:
        assert tracked(folder) == (["FINISHED", "FINISHED"], ["Default", "laplace-head-sam"])
        assert set(integrity(folder).values()) == {"ok"}
    keep("an MLflow database made by two at once", group=GROUP, tried=times, survived=times,
         gets="one database, both runs in it")  # fmt: skip


MATERIALISES = f"""{READY}
import dagster as dg
from sam_laplace_assets.headless import run_job
ready(sys.argv[1])
with dg.DagsterInstance.get() as instance:
    run_job("prepare_split", instance, partition=sys.argv[2], assets=["manifest"])
"""


@pytest.mark.faults
@pytest.mark.parametrize("tracking", [False, True], ids=["alone", "tracked"])
def test_ten_runs_at_once_are_all_recorded(tmp_path, monkeypatch, tracking):
    count = 10
    project = tiny(tmp_path).use(monkeypatch)
    project.change(mlflow={"enabled": tracking})
    names = [f"test-{number:02d}" for number in range(count)]
    for number, name in enumerate(names):
        add_sample(project.folder / "splits" / name, "boxes/a", 100 + number)
    project.refresh(assets=["all_samples"])
    (tmp_path / "meet").mkdir()
    rivals = [Rival.of_script(MATERIALISES, tmp_path / "meet", name, project=project) for name in names]
    with all_stopped(*rivals):
        started_together(tmp_path / "meet", count)
        said = [one.ends() for one in rivals]
    assert not [one for one in said if "Not tracked" in one]
    assert [len(project.version("manifest", name)) for name in names] == [64] * count
    with project.instance() as instance:
        statuses = [run.status.value for run in instance.get_runs() if run.tags.get("dagster/partition") in names]
    assert statuses == ["SUCCESS"] * count
    assert set(integrity(project.folder / "dagster_home").values()) == {"ok"}
    if tracking:
        assert tracked(project.folder / "dagster_home")[0].count("FINISHED") >= count
    keep(f"ten runs at once{', tracked' if tracking else ''}", group=GROUP, tried=count, survived=count,
         gets="all are recorded, no database is damaged, none waits for ever")  # fmt: skip


@pytest.mark.faults
def test_two_processes_make_one_dagster_home(tmp_path, monkeypatch):
    project = tiny(tmp_path).use(monkeypatch)
    rivals = [Rival.running(project, "--asset", "all_samples") for _ in range(2)]
    with all_stopped(*rivals):
        for one in rivals:
            one.ends()
    assert set(integrity(project.folder / "dagster_home").values()) == {"ok"}
    with project.instance() as instance:
        assert {run.status.value for run in instance.get_runs()} == {"SUCCESS"}
