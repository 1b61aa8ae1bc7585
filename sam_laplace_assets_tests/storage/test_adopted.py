"""Prompt sets that were drawn elsewhere."""

import pytest

from sam_laplace_assets.domain.prompts import PromptSet
from sam_laplace_assets.storage import adopted as adopted_files
from sam_laplace_assets.storage.adopted import Adopted, AdoptedSets, adopted_path, read_adopted, write_adopted
from sam_laplace_assets.storage.files import NewerFormat
from sam_laplace_assets.storage.tables import TableRefused
from sam_laplace_assets_tests.storage.fakes import cut

SETS = (PromptSet(0, ((1, 2),), ((3, 4),)), PromptSet(5, ((6, 7), (8, 9)), ((0, 0), (1, 1))))
ROW = {"mask_digest": "20da", "image_h": 40, "image_w": 60}
RECIPE = {"count": 2, "prompt_seed": 777}


@pytest.fixture
def folder(tmp_path):
    """Where the prompt sets of val lie, one sample adopted."""
    folder = tmp_path / "prompt_sets" / "val"
    write_adopted(folder, Adopted(RECIPE, {"cat__1": AdoptedSets.of(SETS, mask_digest="20da", size=(40, 60))}))
    return folder


def test_what_was_adopted_comes_back_as_it_was(folder):
    read = read_adopted(folder)
    assert read.recipe == RECIPE
    assert read.samples["cat__1"].sets == SETS
    assert read.samples["cat__1"].fit(ROW)
    assert read_adopted(folder.with_name("test")) == Adopted()


def test_other_points_have_another_digest():
    one, other = (AdoptedSets.of(sets, mask_digest="20da", size=(40, 60)) for sets in (SETS, SETS[:1]))
    assert one.points_digest != other.points_digest


@pytest.mark.parametrize("change", [{"mask_digest": "ab"}, {"image_h": 41}, {"image_w": 41}])
def test_another_mask_or_size_does_not_fit(folder, change):
    assert not read_adopted(folder).samples["cat__1"].fit(ROW | change)


def test_under_another_recipe_nothing_is_adopted(folder):
    read = read_adopted(folder)
    assert read.under(RECIPE) == read
    assert read.under({"count": 3}) == Adopted({"count": 3})


def test_a_damaged_file_is_named_with_what_follows(folder):
    cut(adopted_path(folder))
    with pytest.raises(TableRefused, match=r"val\.adopted\.parquet is damaged .*deleting it has the prompt sets"):
        read_adopted(folder)


def test_a_newer_file_is_refused(folder, monkeypatch):
    monkeypatch.setattr(adopted_files, "VERSION", 2)
    write_adopted(folder, Adopted())
    monkeypatch.setattr(adopted_files, "VERSION", 1)
    with pytest.raises(NewerFormat, match=r"format version 2, this package reads up to 1. Upgrade"):
        read_adopted(folder)
