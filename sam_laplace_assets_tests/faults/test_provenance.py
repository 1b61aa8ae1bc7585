"""What is made again for a change is exactly what depends on it, and no reader gets a mixture of before and after."""

import contextlib
import json
from pathlib import Path

import h5py
import pyarrow.parquet as pq
import pytest
import safetensors
from PIL import Image, PngImagePlugin
from pydantic import ValidationError
from safetensors.numpy import save
from sqlalchemy import event
from sqlalchemy.engine import Engine

from sam_laplace_assets import storage
from sam_laplace_assets.assets.graph import BY_NAME
from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets.freshness import last_time, look, wanted_plan
from sam_laplace_assets.headless import RunFailed
from sam_laplace_assets.io_managers import IO_MANAGERS
from sam_laplace_assets.settings import Settings
from sam_laplace_assets.storage import adopted, tables
from sam_laplace_assets.storage import lease as leases
from sam_laplace_assets.storage import store as stores
from sam_laplace_assets.storage.lease import held
from sam_laplace_assets.storage.materialise import materialise
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.reports import require_facts
from sam_laplace_assets.storage.rows import load_rows
from sam_laplace_assets.storage.sam import read_array
from sam_laplace_assets.storage.store import NotMade
from sam_laplace_assets_tests.faults.figures import keep
from sam_laplace_assets_tests.faults.provenance import (
    CONTENT,
    NOTHING,
    ONE_VALUE,
    QUICK,
    ROWS,
    SETTINGS,
    VERSIONS,
    Before,
    expected,
    holder,
    inputs_of,
    leaves,
    made_tiny,
    plain_name,
    put_back,
    refreshed,
    version_constants,
    with_setting,
)
from sam_laplace_assets_tests.small_project import SmallProject, count_calls, draw_plainly, failure, hashes

OF_THE_TITLE = {("champion", None), ("evaluation", "test"), ("prompt_scores", "test")}


@pytest.fixture(scope="module", autouse=True)
def _databases_that_do_not_wait_for_the_disk():
    """Dagster's records are not what is tested here, and most of the time would be theirs."""

    def hurry(connection, record):
        connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The tiny project, made; to be copied."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_plainly(monkeypatch)
        return made_tiny(tmp_path_factory.mktemp("made"), monkeypatch)


@pytest.fixture
def project(made, tmp_path, monkeypatch, plain_pictures):
    """A copy of it, its settings in force."""
    return made.copy(tmp_path).use(monkeypatch)


# The table is whole.


def test_every_setting_has_a_row_that_says_what_it_makes_again():
    told = {plain_name(name) for name in SETTINGS} | NOTHING.keys() | ONE_VALUE.keys()
    assert set(leaves()) - told == set(), "a setting without a row: say in faults/provenance.py what it makes again"
    assert told - set(leaves()) == set()


def test_every_version_of_an_algorithm_has_a_row_that_says_what_it_makes_again():
    assert version_constants() == {plain_name(name) for name in VERSIONS}


@pytest.mark.parametrize("name", ONE_VALUE)
def test_a_setting_with_one_value_refuses_another(made, name):
    section, _, key = name.partition(".")
    raw = made.settings.model_dump()
    raw[section][key] = ONE_VALUE[name]
    with pytest.raises(ValidationError, match=key):
        Settings.model_validate(raw)


# What a change makes again.


def rows():
    """Every row; those that are not quick in the long loop alone."""
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.faults) for name in ROWS]


@pytest.mark.parametrize("name", rows())
def test_a_change_makes_again_exactly_what_depends_on_it(project, name, monkeypatch):
    row = ROWS[name]
    if row.first or row.asked:
        project.change(**row.first)
        refreshed(project, monkeypatch, asked=row.asked)
    inputs, versions, before = inputs_of(project), project.versions(), Before.of(project)
    with monkeypatch.context() as changed:
        row.change(project, changed)
        found = refreshed(project, changed, asked=row.asked)
        assert (dict(found.made), found.images, found.answers) == expected(row, project, before)
        assert (project.versions() == versions) or not row.equal
        again = refreshed(project, changed, asked=row.asked)
        assert again.ran == ()
    if row.returns:
        moved = holder(project) != before.title
        put_back(inputs)
        refreshed(project, monkeypatch, asked=row.asked)
        left = OF_THE_TITLE if moved else set()  # who has taken the title keeps it
        now = project.versions()
        assert {one for one in versions if now[one] != versions[one]} <= left
    kind = "settings" if name in SETTINGS else "versions of algorithms" if name in VERSIONS else "files"
    TRIED.setdefault(kind, []).append(name)


TRIED: dict[str, list[str]] = {}
GETS = "what depends on it is made again, nothing else; put back, the versions of before"


@pytest.fixture(scope="module", autouse=True)
def _figures():
    """Keep what was tried, once all of a kind was."""
    yield
    for kind, table in (("settings", SETTINGS), ("versions of algorithms", VERSIONS), ("files", CONTENT)):
        if len(tried := TRIED.get(kind, [])) == len(table):
            keep(f"changed {kind}", group="provenance", tried=len(tried), survived=len(tried), gets=GETS)


def data_of(project):
    """SHA-256 of every file of a project that is no memory of what was looked at."""
    return {name: sha for name, sha in hashes(project.root).items()
            if ".ledger." not in name and name != "sam_precompute/checkpoints.json"}  # fmt: skip


def change_at_once(project):
    """All settings of which another value makes nothing again."""
    for name, value in NOTHING.items():
        project.config.write_text(with_setting(project, name, value))


def test_settings_that_change_nothing_make_nothing_again_all_at_once(project, monkeypatch):
    before = data_of(project)
    change_at_once(project)
    assert refreshed(project, monkeypatch).ran == ()
    assert data_of(project) == before


@pytest.mark.faults
def test_settings_that_change_nothing_make_nothing_again_one_by_one(project, monkeypatch):
    before, text = data_of(project), project.config.read_text()
    ran = {}
    for name, value in NOTHING.items():
        project.config.write_text(with_setting(project, name, value))
        ran[name] = refreshed(project, monkeypatch).ran
        project.config.write_text(text)
    assert ran == dict.fromkeys(NOTHING, ())
    assert data_of(project) == before
    keep("changed settings that are no part of anything made", group="provenance", tried=len(ran), survived=len(ran),
         gets="nothing is made again, no byte changes")  # fmt: skip


def test_a_new_posterior_leaves_the_champions_folder_as_it_was(project, monkeypatch):
    folder = project.paths.posteriors / f"run_{holder(project)}"
    before, there = hashes(folder), {path.name for path in project.paths.posteriors.glob("run_*")}
    project.change(laplace={"prior_precision_grid": [0.1, 10.0, 1e6]})
    refreshed(project, monkeypatch)
    assert hashes(folder) == before
    assert len({path.name for path in project.paths.posteriors.glob("run_*")} - there) == 1


# A refresh that was killed half-way under a changed setting.


class Killed(BaseException):
    """The process is gone."""


def killed_after_one(project, asset, split, monkeypatch):
    """Begin to make a partition, and die when its second item is to be stored."""
    with project.instance() as instance:
        definition = BY_NAME[asset]
        plan = wanted_plan(definition, split, project.settings, instance, {})
        assert last_time(definition.key, split, instance).number
    manager = IO_MANAGERS[definition.get_io_manager_key_for_asset_key(definition.key)]
    store = manager.store(project.paths, split)
    write, stored = store.write, []

    def dying(item, parts, value):
        if stored:
            raise Killed
        stored.append(item.key)
        return write(item, parts, value)

    monkeypatch.setattr(store, "write", dying)
    with pytest.raises(Killed):
        materialise(plan, store, progress=lambda *told: None)
    assert stored


def read_prompts(project):
    """The points of every prompt set of `train`."""
    prompts = view(project, "prompts_io")
    return {key: prompts.read(key) for key in prompts.points}


def read_cache(project):
    """The arrays of every prompt set of `train`."""
    cache = view(project, "sam_io")
    return {(key, one.promptset_id, name): read_array(cache.folder / one.path(name), sha256=sha256).tobytes()
            for key in cache.records for one in cache.sets(key) for name, sha256 in one.sha256.items()}  # fmt: skip


def read_pack(project):
    """The rows of the pack of `train`."""
    rows = load_rows(Pack.open(project.paths.pack("train")))
    return rows.read(range(len(rows)))[0].numpy().tobytes()


def view(project, manager):
    return IO_MANAGERS[manager].view(project.settings, project.paths, "train")


HALF = {
    "prompt_sets": ({"prompt_generation": {"prompt_seed": 1}}, read_prompts),
    "sam_cache": ({"prompt_generation": {"gaussian_sigma": 5}}, read_cache),
    "hdf5_pack": ({"prompt_generation": {"gaussian_sigma": 5}}, read_pack),
}


@pytest.mark.parametrize("seconds", [30.0, 0.0], ids=["before", "after"])
@pytest.mark.parametrize("asset", HALF)
def test_no_reader_gets_a_mixture_of_a_killed_refresh_and_the_next_run_ends_it(project, asset, seconds, monkeypatch):
    """The ledger was last saved before the first item was stored, or after."""
    change, read = HALF[asset]
    before, text = read(project), project.config.read_text()
    project.change(**change)
    if asset == "hdf5_pack":
        project.refresh("train", assets=["sam_cache", "training_index"])
    with monkeypatch.context() as patch:
        patch.setattr(stores, "SECONDS_BETWEEN_SAVES", seconds)
        killed_after_one(project, asset, "train", patch)
    seen = None
    with contextlib.suppress(NotMade, ValueError):  # it is not made to its end, or not what was listed
        seen = read(project)
    assert seen in (None, before)
    project.refresh("train", assets=["prompt_sets", "sam_cache", "training_index", "hdf5_pack"])
    assert read(project) != before
    project.config.write_text(text)
    project.refresh("train", assets=["prompt_sets", "sam_cache", "training_index", "hdf5_pack"])
    assert read(project) == before


@pytest.mark.parametrize("asset", ["prompt_sets", "sam_cache"])
def test_what_follows_a_killed_refresh_is_not_made_from_a_mixture(project, asset, monkeypatch):
    after = {"prompt_sets": ["sam_cache"], "sam_cache": ["training_index", "hdf5_pack"]}[asset]
    project.change(**HALF[asset][0])
    killed_after_one(project, asset, "train", monkeypatch)
    asked = count_calls(monkeypatch, FrozenSam, "ask_many")
    before = data_of(project)
    with contextlib.suppress(RunFailed):
        project.refresh("train", assets=after)
    assert not asked
    assert data_of(project) == before


# Files of a newer version of this package.


def newer(path):
    """Have a file say that it is of the next format version."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+", locking=False) as file:
            file.attrs["version"] = int(file.attrs["version"]) + 1
    elif path.suffix == ".parquet":
        table = pq.read_table(path)
        note = next_version(json.loads(table.schema.metadata[tables.NOTE]))
        pq.write_table(table.replace_schema_metadata({tables.NOTE: json.dumps(note)}), path)
    elif path.suffix == ".png":
        picture = Image.open(path)
        texts = PngImagePlugin.PngInfo()
        for name, text in picture.text.items():
            texts.add_text(name, str(int(text) + 1) if name == "version" else text)
        picture.save(path, pnginfo=texts)
    elif path.suffix == ".safetensors":
        with safetensors.safe_open(path, framework="np") as file:
            note = {**file.metadata(), "version": str(int(file.metadata()["version"]) + 1)}
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
        path.write_bytes(save(arrays, metadata=note))
    else:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("".join(json.dumps(next_version(json.loads(line))) + "\n" for line in lines))


def next_version(said):
    """What a file says of itself, of the next version; whatever seals that in it is not known here."""
    kept = {name: value for name, value in said.items() if name not in ("check", "sealed")}
    return {**kept, "version": said["version"] + 1}


NEWER = {
    "manifest": ("manifests/test.parquet", "manifest", "test"),
    "assignments": ("manifests/assignments.parquet", "all_samples", ""),
    "ledger": ("prompt_sets/test.ledger.parquet", "prompt_sets", "test"),
    "prompt_sets": ("prompt_sets/test/*.json", "prompt_sets", "test"),
    "adopted_prompts": ("prompt_sets/test.adopted.parquet", "prompt_sets", "test"),
    "sam_cache": ("sam_precompute/test/*/promptset_0000/meta.json", "sam_cache", "test"),
    "training_index": ("training_data/no_image/test_index.parquet", "training_index", "test"),
    "pack_shard": ("training_data/no_image/test_shards/*.h5", "hdf5_pack", "test"),
    "pack": ("training_data/no_image/test.h5", "hdf5_pack", "test"),
    "validation_pack": ("training_data/no_image/validation_pack.json", "validation_pack", ""),
    "head_checkpoint": ("checkpoints/no_image/run_*/epoch_state.json", "head_checkpoint", "train"),
    "pointer": ("checkpoints/no_image/current-train.json", "head_checkpoint", "train"),
    "laplace_posterior": ("laplace/no_image/run_*/posterior_meta.json", "laplace_posterior", "train"),
    "champion": ("laplace/no_image/champion_history.jsonl", "champion", ""),
    "champion, of the title": ("laplace/no_image/champion.json", "champion", ""),
    "panel": ("reports/debug_panels/test/*.png", "sanity_panels", "test"),
    "report": ("reports/evaluation/test/summary.json", "evaluation", "test"),
    "report, of a sample": ("reports/prompt_scores/test/samples/*.json", "prompt_scores", "test"),
}
"""Format -> a file of it, and the asset that reads it first."""
NEVER_REFUSED = {"embedding", "lease", "predictions"}
"""A newer embedding is made again, a newer lease waited for; nothing of ours reads predictions."""


def formats():
    """What FORMATS.md lists."""
    text = (Path(storage.__file__).parent / "FORMATS.md").read_text(encoding="utf-8")
    lines = text[text.index("| format | version |") :].split("\n\n")[0].splitlines()[2:]
    return {line.strip("|").split("|")[0].strip(" `") for line in lines}


def test_every_format_has_a_row_that_says_who_refuses_a_newer_file():
    assert {name.partition(",")[0] for name in NEWER} | NEVER_REFUSED == formats()


@pytest.fixture(scope="module")
def to_be_refused(made, tmp_path_factory):
    """A copy of the tiny project whose files take turns at being newer."""
    project = made.copy(tmp_path_factory.mktemp("newer"))
    adopted.write_adopted(project.paths.prompt_sets("test"), adopted.Adopted())
    return project


@pytest.fixture
def newer_file(to_be_refused, request, monkeypatch, plain_pictures):
    """The project with one newer file, that file, and who reads it."""
    place, asset, partition = NEWER[request.param]
    to_be_refused.use(monkeypatch)
    path = sorted(to_be_refused.root.glob(place))[0]
    kept = path.read_bytes()
    newer(path)
    yield to_be_refused, path, asset, partition
    path.write_bytes(kept)


@pytest.mark.parametrize("newer_file", NEWER, indirect=True)
def test_a_file_of_a_newer_version_is_refused_with_what_to_do_and_left_as_it_is(newer_file):
    project, path, asset, partition = newer_file
    before = path.read_bytes()
    with project.instance() as instance:
        found = look(BY_NAME[asset], partition, project.settings, instance)
    assert not found.current
    result = project.materialise(asset, split=partition or None)
    assert not result.success
    said = failure(result)
    assert path.name in said
    assert "has format version" in said
    assert "this package reads up to" in said
    assert "Upgrade the package." in said
    assert path.read_bytes() == before
    NEWER_TRIED.add(path)
    if len(NEWER_TRIED) == len(NEWER):
        keep("files of a newer version", group="provenance", tried=len(NEWER), survived=len(NEWER),
             gets="refused with what to do, and left as they are")  # fmt: skip


NEWER_TRIED: set[Path] = set()


def test_a_newer_embedding_is_made_again(project, monkeypatch):
    project.change(sam={"cache_embeddings": "float32"})
    project.change(prompt_generation={"prompt_seed": 1})
    project.refresh("test", assets=["prompt_sets", "sam_cache"])
    (path,) = (project.root / "sam_precompute" / "test").glob("*/embedding.safetensors")
    before = embedding_in(path)
    newer(path)
    assert embedding_in(path) != before
    project.change(prompt_generation={"prompt_seed": 2})
    encoded = count_calls(monkeypatch, FrozenSam, "prepare")
    project.refresh("test", assets=["prompt_sets", "sam_cache"])
    assert encoded["prepare"] == 1
    assert embedding_in(path) == before


def embedding_in(path):
    """What a file of an embedding says, and its features."""
    with safetensors.safe_open(path, framework="np") as file:
        return file.metadata(), {name: file.get_tensor(name).tobytes() for name in list(file.keys())}


def test_a_newer_lease_is_waited_for_as_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(leases, "SECONDS_OF_SILENCE", 0.3)
    path, told = tmp_path / "sam_cache__val.json", []
    assert leases.Lease(path, "run one").take()
    newer(path)
    with held(path, holder="run two", waiting=told.append):
        pass
    assert len(told) == 1


def test_what_a_newer_report_says_is_not_told(to_be_refused, monkeypatch):
    to_be_refused.use(monkeypatch)
    folder = to_be_refused.paths.report("evaluation", "test")
    kept = (folder / "summary.json").read_bytes()
    newer(folder / "summary.json")
    try:
        with pytest.raises(ValueError, match=r"summary\.json has format version 2.*Upgrade the package"):
            require_facts(folder, name="evaluation[test]")
    finally:
        (folder / "summary.json").write_bytes(kept)


def test_a_project_is_what_its_files_say_wherever_it_lies(made, tmp_path, monkeypatch):
    made.copy(tmp_path / "elsewhere").use(monkeypatch)
    assert refreshed(SmallProject(tmp_path / "elsewhere"), monkeypatch).ran == ()
