import pytest
import torch

from sam_laplace_assets.storage import files, weights
from sam_laplace_assets_tests.faults.hostile import bomb, claims_more


def test_a_state_dict_comes_back_bit_by_bit():
    state = {"w": torch.randn(3, 2), "step": 4, "name": "a", "nested": {"list": [1.5, None]}}
    back = weights.load(weights.dump(state))
    assert torch.equal(back.pop("w"), state.pop("w"))
    assert back == state


def test_equal_states_have_equal_bytes():
    assert weights.dump({"w": torch.ones(3)}) == weights.dump({"w": torch.ones(3)})


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"w": test_code_in_a_file_is_not_run}, tmp_path / "a.pt")
    with pytest.raises(weights.Damaged, match="holds pickled objects, which could run code, or is damaged"):
        weights.load((tmp_path / "a.pt").read_bytes())


@pytest.mark.parametrize("content", [bomb(50_000_000), claims_more(2**30), b"", b"PK"])
def test_a_file_that_claims_more_than_it_holds_is_refused_before_it_is_unpacked(content):
    assert len(content) < 100_000
    with pytest.raises(weights.Damaged, match="A file of weights"):
        weights.load(content)


def test_the_first_file_with_the_digest_is_taken(tmp_path):
    places = [tmp_path / name for name in ("a.pt", "a.pt.next")]
    places[1].write_bytes(b"new")
    assert weights.verified(places, files.sha256(b"new"), named_by="state.json") == b"new"
    places[0].write_bytes(b"old")
    assert weights.verified(places, files.sha256(b"new"), named_by="state.json") == b"new"
    assert weights.verified(places, files.sha256(b"old"), named_by="state.json") == b"old"


def test_a_missing_or_foreign_file_is_named(tmp_path):
    path = tmp_path / "run_x" / "a.pt"
    with pytest.raises(weights.Damaged, match=r"a\.pt is missing: state\.json names SHA-256 .*delete the folder run_x"):
        weights.verified([path], "0" * 64, named_by="state.json")
    path.parent.mkdir()
    path.write_bytes(b"")
    with pytest.raises(weights.Damaged, match=r"a\.pt is not the one that was stored"):
        weights.verified([path], "0" * 64, named_by="state.json")


def test_a_json_that_is_missing_or_newer_is_named(tmp_path):
    path = tmp_path / "state.json"
    with pytest.raises(weights.Damaged, match=r"state\.json is missing"):
        weights.read_versioned(path, version=1)
    files.write_json(path, {"version": 2})
    with pytest.raises(files.NewerFormat, match=r"state\.json has format version 2.*Upgrade"):
        weights.read_versioned(path, version=1)
    files.write_json(path, {"version": 1})
    assert weights.read_versioned(path, version=1) == {"version": 1}
