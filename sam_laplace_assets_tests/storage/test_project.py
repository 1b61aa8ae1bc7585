import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sam_laplace_assets.domain.manifest import LONGEST_KEY
from sam_laplace_assets.settings import DataSettings, Roots
from sam_laplace_assets.storage.project import Project, SplitUnknown, named_splits, roots_of

PLAIN = re.compile("(train|val|test)(-[a-z0-9_-]+)?")
PROJECT = Project(Path("/project"))
PLACES = [PROJECT.prompt_sets, PROJECT.sam_cache, PROJECT.training_index, PROJECT.pack, PROJECT.head_pointer,
          PROJECT.posterior_pointer, PROJECT.panels]  # fmt: skip


def data(tmp_path, **more):
    return DataSettings(images_root=tmp_path / "images", masks_root=tmp_path / "masks", project_root=tmp_path, **more)


@given(st.text() | st.from_regex(r"(train|val|test)[-./\\\n ]?[a-z0-9._/-]*", fullmatch=True))
@example("../x")
@example("train/../../x")
@example("train\n")
@example("val-")
@example("TRAIN")
@example("test-" + "a" * 300)
@example("test-" + "a" * (LONGEST_KEY - 5))
@example("")
def test_a_key_that_is_no_plain_name_never_becomes_a_path(key):
    for place in PLACES:
        if not PLAIN.fullmatch(key) or len(key) > LONGEST_KEY:
            with pytest.raises(ValueError, match=re.escape(repr(key))):
                place(key)
        else:
            assert place(key).parent == place("train").parent
            assert place(key).name == place("train").name.replace("train", key, 1)


def test_no_two_places_of_any_splits_are_one():
    keys = ("train", "train-a", "train-a_index", "train-index", "train-shards", "val", "test-current-val")
    paths = [place(key) for place in PLACES for key in keys]
    assert len(set(paths)) == len(paths)


@pytest.mark.parametrize("key", ["../x", "trian", "train/x"])
def test_roots_of_a_bad_key_are_refused(tmp_path, key):
    with pytest.raises(ValueError, match="Split"):
        roots_of(data(tmp_path, splits_root=tmp_path), key)


def test_base_splits_have_the_base_roots_and_named_ones_their_own(tmp_path):
    (tmp_path / "splits" / "test-sea").mkdir(parents=True)
    elsewhere = Roots(images_root=tmp_path / "i", masks_root=tmp_path / "m")
    settings = data(tmp_path, splits_root=tmp_path / "splits", splits={"test-far": elsewhere})
    assert roots_of(settings, "val").images_root == tmp_path / "images"
    assert roots_of(settings, "test-sea").masks_root == tmp_path / "splits" / "test-sea" / "masks"
    assert roots_of(settings, "test-far").images_root == tmp_path / "i"
    with pytest.raises(SplitUnknown, match=r"'test-sky' has no data: .*test-sky is not there\. Put images and masks"):
        roots_of(settings, "test-sky")
    with pytest.raises(SplitUnknown, match=r"'test-sky' has no folder: set data\.splits_root"):
        roots_of(data(tmp_path), "test-sky")


def test_named_splits_are_folders_with_plain_names_and_those_of_the_settings(tmp_path):
    for name in ("test-sea", "val", "Test-Sea", "notes", ".git"):
        (tmp_path / "splits" / name).mkdir(parents=True)
    (tmp_path / "splits" / "train-file").write_bytes(b"")
    elsewhere = Roots(images_root=tmp_path, masks_root=tmp_path)
    settings = data(tmp_path, splits_root=tmp_path / "splits", splits={"test-far": elsewhere})
    assert named_splits(settings) == ["test-far", "test-sea"]


def test_paths_in_tables_are_relative_to_the_root():
    assert PROJECT.relative(PROJECT.sam_cache("val")) == "sam_precompute/val"


def test_pointers_and_packs_that_are_there_are_found(tmp_path):
    project = Project(tmp_path)
    assert (project.posterior_pointers(), project.packed_splits(), project.fitted_splits()) == ([], [], [])
    for path in (project.posterior_pointer("train-a"), project.pack("val")):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
    assert project.posterior_pointers() == [project.posterior_pointer("train-a")]
    assert (project.packed_splits(), project.fitted_splits()) == (["val"], ["train-a"])
