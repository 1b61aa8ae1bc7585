import os
from pathlib import Path

import pytest

from sam_laplace_assets.storage.samples import Found, list_samples


@pytest.fixture
def roots(tmp_path):
    roots = tmp_path / "images", tmp_path / "masks"
    for root in roots:
        root.mkdir()
    return roots


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def reasons(roots):
    return {one.sample_id: one.reason for one in list_samples(*roots)}


def test_pairs_are_found_in_nested_classes_with_extensions_in_any_case(roots):
    put(roots[0], "b/2.JPG", "a/1.jpeg", "a/deep/er/1.png")
    put(roots[1], "b/2.NPY", "a/1.png", "a/deep/er/1.npy")
    assert list_samples(*roots) == [
        Found("a/1", "a", "a/1.jpeg", "a/1.png", None),
        Found("a/deep/er/1", "a/deep/er", "a/deep/er/1.png", "a/deep/er/1.npy", None),
        Found("b/2", "b", "b/2.JPG", "b/2.NPY", None),
    ]


def test_a_stem_keeps_its_dots(roots):
    put(roots[0], "a/scan.v1.2.png")
    put(roots[1], "a/scan.v1.2.npy")
    assert reasons(roots) == {"a/scan.v1.2": None}


def test_each_refusal_has_its_reason(roots):
    put(
        roots[0],
        "a/alone.png",
        "a/two.png",
        "a/two.JPG",
        "a/masks.png",
        "top.png",
        "a/notes.txt",
        "a/array.npy",
        "a/none",
    )
    put(roots[1], "a/orphan.npy", "a/two.npy", "a/masks.npy", "a/masks.png", "top.npy", "a/wrong.jpg")
    assert reasons(roots) == {
        "a/alone": "image without mask: expected a .npy or .png of the same class and stem",
        "a/array.npy": "not an image: expected .jpg, .jpeg or .png",
        "a/masks": "two masks of one stem: a/masks.npy, a/masks.png",
        "a/none": "not an image: expected .jpg, .jpeg or .png",
        "a/notes.txt": "not an image: expected .jpg, .jpeg or .png",
        "a/orphan": "mask without image: expected a .jpg, .jpeg or .png of the same class and stem",
        "a/two": "two images of one stem: a/two.JPG, a/two.png",
        "a/wrong.jpg": "not a mask: expected .npy or .png",
        "top": "stands in no class folder: move it to <class>/<stem>",
    }


def test_two_samples_of_one_safe_id_are_both_refused_and_named(roots):
    for root, suffix in zip(roots, (".png", ".npy"), strict=True):
        put(root, f"a/b__c{suffix}", f"a/b/c{suffix}", f"a/d{suffix}")
    reason = "one safe id, a__b__c, for a/b/c and a/b__c: rename all but one"
    assert reasons(roots) == {"a/b/c": reason, "a/b__c": reason, "a/d": None}


def test_hidden_files_and_folders_are_passed_over(roots):
    for root, suffix in zip(roots, (".png", ".npy"), strict=True):
        put(
            root, f"a/1{suffix}", f"a/._1{suffix}", f"a/.2{suffix}", f".cache/a/3{suffix}", "a/.DS_Store", f"a/{suffix}"
        )
    assert reasons(roots) == {"a/1": None}


def test_links_within_a_root_are_followed_and_links_out_of_it_refused(roots, tmp_path):
    put(tmp_path, "elsewhere/1.png")
    put(roots[0], "a/1.png")
    (roots[0] / "b").symlink_to(roots[0] / "a")
    (roots[0] / "a/linked.png").symlink_to("1.png")
    (roots[0] / "a/out.png").symlink_to(tmp_path / "elsewhere/1.png")
    (roots[0] / "a/broken.png").symlink_to("nothing.png")
    (roots[0] / "a/self.png").symlink_to("self.png")
    (roots[0] / "out").symlink_to(tmp_path / "elsewhere")
    put(roots[1], *(f"{folder}/{stem}.npy" for folder in "ab" for stem in ("1", "linked", "out", "broken", "self")))
    out = "a link out of the root: copy the file here, set the root above both, or allow it with data.allow_links_out"
    broken = "no regular file, or a broken link: remove or restore it"
    in_a = {"1": None, "linked": None, "out": out, "broken": broken, "self": broken}
    expected = {f"{folder}/{stem}": reason for folder in "ab" for stem, reason in in_a.items()}
    assert reasons(roots) == expected | {"out": out}


def test_links_out_of_a_root_are_followed_where_that_is_allowed_and_loops_never(roots, tmp_path):
    put(tmp_path, "elsewhere/1.png", "elsewhere/a/2.png")
    (tmp_path / "elsewhere/a/round").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/a/above").symlink_to(tmp_path)
    (roots[0] / "out").symlink_to(tmp_path / "elsewhere")
    put(roots[0], "b/0.png")
    (roots[0] / "b/1.png").symlink_to(tmp_path / "elsewhere/1.png")
    (roots[0] / "b/null.png").symlink_to("/dev/null")
    put(roots[1], "b/0.npy", "b/1.npy", "b/null.npy", "out/1.npy", "out/a/2.npy")
    back, nothing = "a link back to a folder it stands in: remove it", "no regular file, or a broken link"
    found = {one.sample_id: one.reason for one in list_samples(*roots, allow_links_out=True)}
    assert found.pop("b/null").startswith(nothing)
    assert found == {"b/0": None, "b/1": None, "out/1": None, "out/a/2": None, "out/a/round": back,
                     "out/a/above": back}  # fmt: skip


def test_folder_loops_end(roots):
    put(roots[0], "a/1.png")
    put(roots[1], "a/1.npy")
    (roots[0] / "a/up").symlink_to(roots[0])
    (roots[0] / "a/here").symlink_to(roots[0] / "a")
    back = "a link back to a folder it stands in: remove it"
    assert reasons(roots) == {"a/1": None, "a/here": back, "a/up": back}


def test_a_root_may_itself_be_a_link(roots, tmp_path):
    put(roots[0], "a/1.png")
    put(roots[1], "a/1.npy")
    (tmp_path / "link").symlink_to(roots[0])
    assert list_samples(tmp_path / "link", roots[1]) == [Found("a/1", "a", "a/1.png", "a/1.npy", None)]


def test_accents_pair_however_they_are_composed(roots):
    put(roots[0], "a/e\u0301te\u0301.png")
    put(roots[1], "a/\u00e9t\u00e9.npy")
    (found,) = list_samples(*roots)
    assert found == Found("a/\u00e9t\u00e9", "a", "a/e\u0301te\u0301.png", "a/\u00e9t\u00e9.npy", None)


def test_a_name_that_is_no_text_is_refused_in_words_that_can_be_stored(roots):
    put(roots[0], os.fsdecode(b"a/\xff.png"))
    (found,) = list_samples(*roots)
    assert found.reason == "its name is not valid UTF-8: rename it"
    assert (found.sample_id + found.image_path).encode()


def test_no_two_files_are_told_in_the_same_words(roots):
    names = ["a/\udcff.png", "a/\\udcff.png", "a/\n.png", "a/\\n.png", "a/\\\\n.png", "a/\x01.png", "a/\\x01.png"]
    put(roots[0], *names)
    found = list_samples(*roots)
    assert len({one.image_path for one in found}) == len(names) == len(found)
    assert all(one.image_path.isprintable() and one.image_path.encode() for one in found)


def test_a_folder_that_cannot_be_read_or_goes_away_meanwhile_is_named_and_the_others_are_read(roots, monkeypatch):
    for root, suffix in zip(roots, (".png", ".npy"), strict=True):
        put(root, f"a/1{suffix}", f"closed/1{suffix}", f"gone/1{suffix}")
    told = {"closed": PermissionError(13, "Permission denied"), "gone": FileNotFoundError(2, "No such file")}
    inside = Path.iterdir

    def iterdir(folder):
        if folder.name in told:
            raise told[folder.name]
        return inside(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    found = [(one.sample_id, one.reason) for one in list_samples(*roots)]
    refused = [(name, f"a folder that cannot be read ({told[name].strerror}): mend or remove it") for name in told]
    assert found == sorted([("a/1", None), *refused, *refused])


def test_the_listing_is_sorted_and_the_same_twice(roots):
    names = [f"{folder}/{i}" for folder in ("b", "a", "a/c", "a-b") for i in (10, 9, 1)]
    put(roots[0], *(f"{name}.png" for name in names))
    put(roots[1], *(f"{name}.npy" for name in reversed(names)))
    assert [one.sample_id for one in list_samples(*roots)] == sorted(names)
    assert list_samples(*roots) == list_samples(*roots)


def test_a_missing_root_names_its_setting(roots, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.masks_root is .*nowhere, where there is no folder\. Set"):
        list_samples(roots[0], tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"^splits\.x\.images is "):
        list_samples(tmp_path / "nowhere", roots[1], images_key="splits.x.images")


def test_an_accepted_find_has_both_files():
    with pytest.raises(ValueError, match="a/1 lacks its image or its mask: give the reason why it is refused"):
        Found("a/1", "a", "a/1.png", None, None)
