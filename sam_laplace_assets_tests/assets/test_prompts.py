"""Prompt sets drawn in pairs and like those of real work, and what follows from them."""

import json

import numpy as np
import pytest
import yaml

from sam_laplace_assets.assets import panels
from sam_laplace_assets.assets.prompts import PromptSource, drawing
from sam_laplace_assets.domain.interactive import draw_interactive_sets
from sam_laplace_assets.domain.plan import digest
from sam_laplace_assets.domain.prompts import PromptMix
from sam_laplace_assets.domain.sam import FrozenSam
from sam_laplace_assets.settings import PromptSettings
from sam_laplace_assets.storage import files, images
from sam_laplace_assets.storage.head import HeadRun
from sam_laplace_assets.storage.index import read_index
from sam_laplace_assets.storage.ledger import Ledger
from sam_laplace_assets.storage.manifest import Sample, open_manifest, read_rows
from sam_laplace_assets.storage.pack import Pack
from sam_laplace_assets.storage.posterior import PosteriorRun
from sam_laplace_assets.storage.prompts import read_prompt_sets
from sam_laplace_assets.storage.rows import load_rows
from sam_laplace_assets.storage.runs import current_run
from sam_laplace_assets.storage.sam import SamCache, ledger_path
from sam_laplace_assets_tests.small_project import BASE, add_sample, count_calls, draw_plainly, failure, hashes
from sam_laplace_assets_tests.storage.fakes import unsealed

INTERACTIVE = {"mode": "interactive"}
PAIRS_OF_VERSION_1 = (
    '{"mask_digest": "20da", "image_size": [40, 60], "count": 2, "min_pairs": 1, "max_pairs": 3, "prompt_seed": 777, '
    '"version": "1"}'
)
BEFORE = {"all_samples", "manifest"}
FOLLOWING = {"prompt_sets", "sam_cache", "training_index", "hdf5_pack", "sanity_panels", "validation_pack",
             "head_checkpoint", "laplace_posterior", "champion"}  # fmt: skip


@pytest.fixture(scope="module")
def clicked(made_project, tmp_path_factory):
    """The made project, its prompts drawn like those of real work, and what ran for that; to be read only."""
    project = made_project.copy(tmp_path_factory.mktemp("clicked"))
    project.change(prompt_generation=INTERACTIVE)
    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_plainly(monkeypatch)
        return project, project.use(monkeypatch).refresh()


def source(count=2, **changes):
    sample = Sample({"mask_digest": "20da", "image_h": 40, "image_w": 60}, None, None)
    return PromptSource(sample, drawing(PromptSettings(**{"max_pairs": 3, **changes}), count=count))


def head_of(project):
    run_id = current_run(project.paths.head_pointer("train"), name="head")
    return HeadRun.open(project.paths.checkpoints / f"run_{run_id}")


def posterior_of(project):
    run_id = current_run(project.paths.posterior_pointer("train"), name="posterior")
    return PosteriorRun.open(project.paths.posteriors / f"run_{run_id}")


def drawn_sets(project, split):
    """The prompt sets of a split, in the order of its rows."""
    rows = [row for row in read_rows(project.paths.manifests, split) if row["valid"]]
    return [
        one for row in rows for one in read_prompt_sets(project.paths.prompt_sets(split) / f"{row['safe_id']}.json")
    ]


def test_the_provenance_of_pairs_is_that_of_before_there_was_another_mode():
    assert json.dumps(source().provenance) == PAIRS_OF_VERSION_1
    assert json.dumps(source(max_clicks=3, click_jitter=0.1).provenance) == PAIRS_OF_VERSION_1


def test_the_provenance_of_interactive_sets_names_what_they_depend_on_and_nothing_else():
    provenance = source(**INTERACTIVE).provenance
    assert provenance == {
        "mask_digest": "20da", "image_size": [40, 60], "mode": "interactive", "count": 2, "max_clicks": 20,
        "click_jitter": 0.5, "prompt_seed": 777, "version": "1",
    }  # fmt: skip
    assert source(**INTERACTIVE, min_pairs=2, max_pairs=9).provenance == provenance
    for change in ({"max_clicks": 3}, {"click_jitter": 0.0}, {"prompt_seed": 1}, {"count": 3}):
        assert digest(source(**(INTERACTIVE | change)).provenance) != digest(provenance)


def test_prompts_of_the_other_mode_are_drawn_with_the_settings_and_everything_after_them_is_made(clicked):
    project, ran = clicked
    made = {name.partition("[")[0] for name in ran}
    assert made >= FOLLOWING
    assert not made & BEFORE
    (row, *_) = read_rows(project.paths.manifests, "val")
    mask = images.read_mask(project.folder / "masks" / row["mask_path"])
    expected = draw_interactive_sets(mask, sample_id=row["sample_id"], count=2, max_clicks=20, prompt_seed=777)
    assert read_prompt_sets(project.paths.prompt_sets("val") / f"{row['safe_id']}.json") == expected


def test_numbers_of_points_reach_the_rows_of_the_pack(clicked, made_project):
    for project in (clicked[0], made_project):
        for split in BASE:
            pack, sets = Pack.open(project.paths.pack(split)), drawn_sets(project, split)
            assert pack.n_pos.tolist() == [len(one.pos) for one in sets]
            assert pack.n_neg.tolist() == [len(one.neg) for one in sets]
            frame, _ = read_index(project.paths.training_index(split), "parquet", split=split)
            np.testing.assert_array_equal(frame["k_pairs"], np.minimum(pack.n_pos, pack.n_neg))
            np.testing.assert_array_equal(frame[["n_pos", "n_neg"]], np.stack([pack.n_pos, pack.n_neg], axis=1))


def test_a_map_is_zero_where_a_set_has_no_such_points_and_nowhere_else(clicked):
    pack = Pack.open(clicked[0].paths.pack("train"))
    _, positive, negative = load_rows(pack).inputs.unbind(1)
    assert 0 < (pack.n_neg == 0).sum() < len(pack)
    np.testing.assert_array_equal((negative == 0).all(2).all(1).numpy(), pack.n_neg == 0)
    assert (positive.amax((1, 2)) > 0).all()


def test_a_head_and_its_posterior_say_what_prompts_they_were_trained_on(clicked, made_project):
    for project, mode in ((clicked[0], "interactive"), (made_project, "pairs")):
        pack = Pack.open(project.paths.pack("train"))
        mix = PromptMix.of(pack.n_pos, pack.n_neg)
        assert mix.mode == mode
        assert head_of(project).prompts == mix
        assert posterior_of(project).meta["prompts"] == head_of(project).config["prompts"]
        assert project.metadata("head_checkpoint", "train")["prompts"] == mix.in_words


def test_switching_the_mode_and_back_gives_the_versions_of_before(clicked, made_project, tmp_path, monkeypatch):
    draw_plainly(monkeypatch)
    project = clicked[0].copy(tmp_path).use(monkeypatch)
    switched, pairs = project.versions(), made_project.versions()
    other = {asset for asset, split in pairs if switched[asset, split] != pairs[asset, split]}
    assert other >= FOLLOWING
    assert not other & BEFORE
    project.change(prompt_generation={"mode": "pairs"})
    project.refresh()
    assert project.versions() == pairs


def test_a_head_of_before_keeps_its_name_and_says_that_its_prompts_are_not_recorded(project):
    head = head_of(project)
    forget_prompts(head.folder)
    assert head_of(project).prompts is None
    assert project.materialise("head_checkpoint", split="train").success
    assert head_of(project).run_id == head.run_id
    assert project.metadata("head_checkpoint", "train")["prompts"] == "not recorded"
    assert project.materialise("laplace_posterior", split="train", label="later").success
    assert posterior_of(project).meta["prompts"] is None


def forget_prompts(folder):
    """Make a finished head one of before prompts were recorded."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    del config["prompts"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    state = unsealed((folder / "epoch_state.json").read_text())
    state["sha256"]["config.yaml"] = files.file_sha256(folder / "config.yaml")
    files.write_json(folder / "epoch_state.json", state)


def test_a_cache_of_before_is_taken_as_it_is_and_its_sets_are_pairs(project, monkeypatch):
    encoded, before = count_calls(monkeypatch, FrozenSam, "prepare"), hashes(project.paths.sam_cache("val"))
    packed = Pack.open(project.paths.pack("val"))
    forget_numbers_of_points(project.paths.sam_cache("val"))
    assert project.refresh() == []
    project.materialise("training_index", split="val", force=True)
    project.materialise("hdf5_pack", split="val", force=True)
    assert encoded["prepare"] == 0
    assert hashes(project.paths.sam_cache("val")) == before
    np.testing.assert_array_equal(Pack.open(project.paths.pack("val")).n_pos, packed.n_pos)
    np.testing.assert_array_equal(Pack.open(project.paths.pack("val")).n_neg, packed.n_neg)


def forget_numbers_of_points(folder):
    """Make the ledger of a cache one of before interactive sets."""
    ledger = Ledger.load(ledger_path(folder))
    for entry in ledger.entries.values():
        for facts in entry.record.summary.values():
            del facts["n_pos"], facts["n_neg"]
    ledger.save()


def test_a_cache_whose_ledger_is_lost_has_its_numbers_from_its_files(clicked, tmp_path, monkeypatch):
    project = clicked[0].copy(tmp_path).use(monkeypatch)
    ledger_path(project.paths.sam_cache("val")).unlink()
    encoded = count_calls(monkeypatch, FrozenSam, "prepare")
    assert project.materialise("sam_cache", split="val").success
    cache = SamCache.open(project.paths.sam_cache("val"), split="val")
    found = [(one.n_pos, one.n_neg) for key in cache.records for one in cache.sets(key)]
    assert found == [(len(one.pos), len(one.neg)) for one in drawn_sets(project, "val")]
    assert encoded["prepare"] == 0


def test_a_mask_of_one_pixel_is_clicked_where_pairs_cannot_be_drawn(project):
    mask = np.zeros((40, 60), dtype=bool)
    mask[10, 20] = True
    add_sample(
        project.folder / "splits" / "test-caves", "caves/dot", 1, image=np.full((40, 60, 3), 90, np.uint8), mask=mask
    )
    for asset, split in (("all_samples", None), ("manifest", "test-caves")):
        assert project.materialise(asset, split=split).success
    result = project.materialise("prompt_sets", split="test-caves")
    assert "its mask has 1 such pixels" in failure(result)
    project.change(prompt_generation=INTERACTIVE)
    project.refresh("test-caves")
    pack = Pack.open(project.paths.pack("test-caves"))
    assert pack.n_pos.tolist() == [1, 1]
    assert all(one.pos == ((20, 10),) for one in drawn_sets(project, "test-caves"))


def test_a_mode_and_clicks_of_the_launchpad_hold_and_wrong_ones_are_named(project):
    assert project.materialise("prompt_sets", split="test", mode="interactive", max_clicks=1, click_jitter=0.0).success
    assert {(len(one.pos), len(one.neg)) for one in drawn_sets(project, "test")} == {(1, 0)}
    result = project.materialise("prompt_sets", split="test", mode="clicks")
    assert not result.success
    said = str(result.get_step_failure_events()[0].step_failure_data.error)
    assert "mode" in said
    assert "'pairs' or 'interactive'" in said


@pytest.mark.parametrize(("mode", "words"), [("clicked", "positive, "), ("made", " pairs")])
def test_a_panel_says_what_points_it_shows(clicked, made_project, monkeypatch, mode, words):
    project = (clicked[0] if mode == "clicked" else made_project).use(monkeypatch)
    titles = []
    monkeypatch.setattr(panels, "draw_panels", lambda *arrays, title: titles.append(title) or b"")
    paths = project.paths
    manifest = open_manifest(paths.manifests, "train", images_root=project.folder / "images",
                             masks_root=project.folder / "masks")  # fmt: skip
    cache = SamCache.open(paths.sam_cache("train"), split="train")
    for item in panels.plan_panels(manifest, cache, paths.panels("train"), n=12).items:
        panels.draw(item.source)
    assert any(words in title for title in titles)
    assert all(title.endswith((" pairs", " points")) for title in titles)
