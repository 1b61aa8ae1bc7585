"""FORMATS.md says what the stores write."""

import importlib
import json
import pkgutil
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors import safe_open

from sam_laplace_assets import storage
from sam_laplace_assets.domain.plan import Item, Plan
from sam_laplace_assets.storage import active_prompting, evaluation, predictions, scores, sweep, tables
from sam_laplace_assets.storage.active_prompting import ClickStore
from sam_laplace_assets.storage.adopted import Adopted, write_adopted
from sam_laplace_assets.storage.champion import ChampionStore
from sam_laplace_assets.storage.embeddings import embedding_bytes
from sam_laplace_assets.storage.head import HeadStore
from sam_laplace_assets.storage.index import IndexStore
from sam_laplace_assets.storage.lease import Lease
from sam_laplace_assets.storage.manifest import ManifestStore
from sam_laplace_assets.storage.pack import Pack, PackStore
from sam_laplace_assets.storage.panels import PanelStore
from sam_laplace_assets.storage.posterior import FittedPosterior, PosteriorStore
from sam_laplace_assets.storage.project import Project
from sam_laplace_assets.storage.prompts import PromptStore
from sam_laplace_assets.storage.reports import Findings, Layout, ReportStore, SampleReportStore
from sam_laplace_assets.storage.sam import SampleOutput, SamStore
from sam_laplace_assets.storage.validation import ValidationStore
from sam_laplace_assets_tests.storage.fakes import KEYS, make, pack_plan, prompt_plan, sam_plan
from sam_laplace_assets_tests.storage.tables_of import index_plan, manifest_plan, panel_plan
from sam_laplace_assets_tests.storage.test_champion import plan as decision
from sam_laplace_assets_tests.storage.test_head import WEIGHTS, Training

TEXT = (Path(storage.__file__).parent / "FORMATS.md").read_text(encoding="utf-8")


def table(header):
    """The rows below a table's header line, as lists of cells."""
    lines = TEXT[TEXT.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


FORMATS = {row[0].strip("`"): row for row in table("| format | version |")}
BESIDE = {row[0].strip("`"): row[1] for row in table("| set | files |")}
REPORTS = {row[0].strip("`"): row[1] for row in table("| table of a report | columns |")}
NOTES = {row[0].strip("`"): row[1] for row in table("| note of | fields |")}
STATE = ("epoch", "best_iou", "best_epoch", "epochs_without_improvement", "history", "finished")
META = ("training_split", "head", "packs", "prompts", "sam", "likelihood", "target_layer", "approx", "parameters",
        "logit_clip", "prior_precision", "prior_search", "warnings", "likelihood_temperature", "logit_scale", "counts",
        "train_nll_per_pixel", "log_marginal_likelihood", "dead_parameters", "versions", "probe")  # fmt: skip


def listed(cell):
    return sorted(name.strip() for name in cell.split(","))


def versioned_modules():
    names = [module.name for module in pkgutil.iter_modules(storage.__path__)]
    modules = {name: importlib.import_module(f"{storage.__name__}.{name}") for name in names}
    return {name: module for name, module in modules.items() if hasattr(module, "VERSION")}


def one(**parts):
    return Item("train-abc", parts, {"lr": 0.1})


CONCEPTS = (
    (evaluation, ReportStore, None),
    (sweep, ReportStore, None),
    (scores, SampleReportStore, {"maps": []}),
    (active_prompting, ClickStore, {"report": []}),
)


def nothing(concept):
    """A report without a row."""
    return Findings({name: pd.DataFrame(columns=schema.names) for name, schema in concept.TABLES.items()})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project with a file of every format, tables as Parquet in `parquet` and as CSV in `csv`."""
    top = tmp_path_factory.mktemp("project")
    for table_format in ("parquet", "csv"):
        project = Project(top / table_format, table_format)
        make(manifest_plan(KEYS), ManifestStore(project.manifests, "all_samples"))
        make(index_plan(KEYS), IndexStore(project.training_index("val"), table_format))
        for concept, store, of_sample in CONCEPTS:
            value = of_sample or nothing(concept)
            plan = Plan([one(report="1")], make=lambda item, parts, value=value: value,
                        finish=lambda samples, concept=concept: nothing(concept))  # fmt: skip
            layout = Layout(concept.ASSET, concept.TABLES, table_format)
            make(plan, store(project.report(concept.ASSET, "val"), layout))
    make(prompt_plan(), PromptStore(project.prompt_sets("val")))
    write_adopted(project.prompt_sets("val"), Adopted())
    cache = SamStore(project.sam_cache("val"))
    make(sam_plan(), cache)
    features = embedding_bytes(np.zeros((1, 2, 2, 2), dtype=np.float16), {})
    cache.write(sam_plan().items[0], frozenset(), SampleOutput([], features))
    make(pack_plan(KEYS[:1]), PackStore(project.packs, "val"))
    pack = Pack.open(project.pack("val"))
    named = Plan([Item("validation_pack", {"pack": pack.data_version}, pack)], make=lambda item, parts: pack)
    make(named, ValidationStore(project.validation_pack))
    states = {name: {} for name in WEIGHTS} | dict.fromkeys(STATE, 1)
    head = HeadStore(project.checkpoints, project.head_pointer("train"))
    record = head.write(one(run="1"), frozenset({"run"}), states)
    head.finish(Training().course(), {"train-abc": record}, complete=True)
    fitted = FittedPosterior({}, {}, {}, dict.fromkeys(META, 1))
    make(Plan([one(run="1")], make=lambda item, parts: fitted),
         PosteriorStore(project.posteriors, project.posterior_pointer("train")))  # fmt: skip
    make(decision(), ChampionStore(project.posteriors))
    make(panel_plan(["cat__1_0000"]), PanelStore(project.panels("val")))
    used = dict.fromkeys(("posterior", "sam", "gaussian_sigma", "rule"), 1)
    assert Lease(project.lease("sam_cache", "val"), "run one").take()
    predictions.write_summary(project.root / "out", used, [], [])
    return top


def pattern(place):
    """The files that a place of FORMATS.md stands for."""
    return re.sub(r"<[^>]*>", "*", place).replace("NNNN", "*")


def files_of(root, format_name):
    found = []
    for place in re.findall(r"`([^`]+)`", FORMATS[format_name][3]):
        for folder in (root / "parquet", root / "csv"):
            found += [path for path in folder.rglob("*") if path.match(pattern(place))]
    others = {"manifest": ("assignments", ".ledger."), "ledger": ()}.get(format_name, (".ledger.",))
    return [path for path in found if not any(other in path.name for other in others)]


def fields_of(path):
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return sorted([*file, *(f"@{name}" for name in file.attrs)])
    if path.suffix == ".safetensors":
        with safe_open(path, framework="np") as file:
            return sorted([*file.keys(), *(f"@{name}" for name in file.metadata())])
    if path.suffix == ".png":
        with Image.open(path) as picture:
            return sorted(picture.info)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return sorted(pq.read_schema(path).names)
    return sorted(json.loads(path.read_text(encoding="utf-8")))


def test_every_module_with_a_version_is_listed_with_it():
    modules = versioned_modules()
    assert {row[2].strip("`") for row in FORMATS.values()} == set(modules)
    for name, row in FORMATS.items():
        module = modules[row[2].strip("`")]
        assert int(row[1]) == module.VERSION
        assert f"version {module.VERSION}" in (module.__doc__ if name != "pack_shard" else modules["pack"].__doc__)
        assert re.search(rf"\"{name}\"", Path(module.__file__).read_text(encoding="utf-8")), name


@pytest.mark.parametrize("format_name", FORMATS)
def test_files_have_exactly_the_fields_that_are_listed(root, format_name):
    found = [path for path in files_of(root, format_name) if path.name != "champion_history.jsonl"]
    assert found
    for path in found:
        assert fields_of(path) == listed(FORMATS[format_name][4]), path


@pytest.mark.parametrize("format_name", NOTES)
def test_notes_have_exactly_the_fields_that_are_listed(root, format_name):
    for path in files_of(root, format_name):
        note = tables.read_note(path, version=int(FORMATS[format_name][1]))
        assert sorted(note) == listed(NOTES[format_name])
        assert note["format"] == format_name


@pytest.mark.parametrize("format_name", ["manifest", "assignments", "training_index"])
def test_a_csv_has_the_columns_of_the_parquet_file_and_its_note_the_sha256(root, format_name):
    for path in files_of(root, format_name):
        twin = (root / "csv" / path.relative_to(root / "parquet")).with_suffix(".csv")
        header = twin.read_text(encoding="utf-8").splitlines()[0].replace('"', "").split(",")
        assert sorted(header) == fields_of(path)
        note = json.loads(twin.with_name(f"{twin.name}.json").read_text(encoding="utf-8"))
        assert sorted(note) == sorted([*listed(NOTES[note["format"]]), "check", "sha256"])


@pytest.mark.parametrize("format_name", BESIDE)
def test_the_files_beside_are_those_that_are_named_with_their_sha256(root, format_name):
    for path in files_of(root, format_name):
        named = sorted(json.loads(path.read_text(encoding="utf-8"))["sha256"])
        assert named == listed(BESIDE[format_name])
        assert sorted({one.name for one in path.parent.iterdir()} - {path.name}) == named


@pytest.mark.parametrize("name", REPORTS)
def test_tables_of_reports_have_exactly_the_columns_that_are_listed(root, name):
    asset, _, stem = name.partition("/")
    path = root / "parquet" / "reports" / asset / "val" / f"{stem}.parquet"
    assert fields_of(path) == listed(REPORTS[name])
    twin = (root / "csv" / path.relative_to(root / "parquet")).with_suffix(".csv")
    assert sorted(twin.read_text(encoding="utf-8").splitlines()[0].replace('"', "").split(",")) == fields_of(path)
    assert sorted(tables.read_note(path, version=1)) == ["format", "version"]


def test_the_history_adds_the_candidates(root):
    (path,) = root.rglob("champion_history.jsonl")
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)) == sorted([*listed(FORMATS["champion"][4]), "candidates"])
