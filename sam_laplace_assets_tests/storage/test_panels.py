import pytest
from PIL import Image

from sam_laplace_assets.storage import files, panels
from sam_laplace_assets.storage.panels import PanelStore
from sam_laplace_assets_tests.storage.fakes import KEYS, Work, cut, holds, make
from sam_laplace_assets_tests.storage.tables_of import panel_plan


@pytest.fixture
def folder(tmp_path):
    make(panel_plan(KEYS), PanelStore(tmp_path))
    return tmp_path


def drawn(folder, **plan):
    work = Work()
    make(panel_plan(KEYS, work=work, **plan), PanelStore(folder))
    return [key for key, _ in work.take()]


def test_a_picture_is_stored_with_its_pixels_and_what_it_was_made_from(folder):
    with Image.open(folder / f"{KEYS[0]}.png") as picture:
        assert picture.info[panels.PROVENANCE] == panel_plan(KEYS).items[0].parts[panels.PART]
        assert picture.getpixel((0, 0)) == (0, len(KEYS[0]), 0)


def test_pictures_are_drawn_once_and_again_when_what_they_show_changes(folder):
    before = holds(folder)
    assert drawn(folder) == []
    assert drawn(folder, seed=1) == list(KEYS)
    assert drawn(folder) == list(KEYS)
    assert holds(folder) == before


@pytest.mark.parametrize("harm", [cut, lambda path: path.unlink(), lambda path: path.write_bytes(b"GIF89a")])
def test_a_picture_that_is_cut_gone_or_foreign_is_drawn_again(folder, harm):
    before = holds(folder)
    harm(folder / f"{KEYS[1]}.png")
    assert drawn(folder) == [KEYS[1]]
    assert holds(folder) == before


def test_the_version_is_that_of_what_is_shown(folder, tmp_path_factory):
    other = make(panel_plan(KEYS), PanelStore(tmp_path_factory.mktemp("other")))
    assert make(panel_plan(KEYS), PanelStore(folder)).data_version == other.data_version
    assert make(panel_plan(KEYS, seed=1), PanelStore(folder)).data_version != other.data_version


def test_a_newer_picture_is_refused(folder, monkeypatch):
    monkeypatch.setattr(panels, "VERSION", 0)
    with pytest.raises(files.NewerFormat, match=r"cat__1\.png has format version 1.*Upgrade"):
        drawn(folder)
