import dagster as dg
import pytest

from sam_laplace_assets.partitions import (
    check_split,
    is_training_split,
    known_splits,
    partition_requests,
    register_splits,
    require_split,
    require_training_split,
)
from sam_laplace_assets.settings import DataSettings, Roots
from sam_laplace_assets.storage.project import SplitUnknown


@pytest.fixture
def data(tmp_path):
    for name in ("test-underwater", "train-2026q4", "trian-typo", "Test-Upper", "notes"):
        (tmp_path / "splits" / name).mkdir(parents=True)
    (tmp_path / "splits" / "val-file").touch()
    elsewhere = Roots(images_root=tmp_path / "a", masks_root=tmp_path / "b")
    return DataSettings(
        images_root=tmp_path / "images",
        masks_root=tmp_path / "masks",
        project_root=tmp_path / "project",
        splits_root=tmp_path / "splits",
        splits={"val-elsewhere": elsewhere},
    )


@pytest.fixture
def instance():
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


KNOWN = "Known splits: train, val, test, test-underwater, train-2026q4, val-elsewhere."


def test_known_splits_are_the_base_ones_then_folders_with_a_role_and_those_of_the_settings(data):
    assert known_splits(data) == ["train", "val", "test", "test-underwater", "train-2026q4", "val-elsewhere"]


@pytest.mark.parametrize("key", ["../x", "trian", "a,b", "train/../val", "", "Test-Upper", "test-", "val-nowhere", "."])
def test_a_key_that_is_no_split_with_data_fails_naming_the_known_ones(data, key):
    with pytest.raises(SplitUnknown) as raised:
        check_split(key, data)
    assert str(raised.value).endswith(KNOWN)
    with pytest.raises(dg.Failure) as failed:
        require_split(key, data)
    assert failed.value.description == str(raised.value)
    assert not failed.value.allow_retries


@pytest.mark.parametrize("key", ["train", "val", "test", "test-underwater", "val-elsewhere"])
def test_a_split_with_data_is_given_back(data, key):
    assert require_split(key, data) == key


@pytest.mark.parametrize("key", ["val", "test-underwater"])
def test_only_splits_with_role_train_are_trained_on(data, key):
    with pytest.raises(dg.Failure) as failed:
        require_training_split(key, data)
    assert f"Split {key!r} is no training split" in failed.value.description
    assert require_training_split("train-2026q4", data) == "train-2026q4"
    assert [is_training_split(name) for name in ("train", "train-x", "val-x")] == [True, True, False]


def test_training_splits_are_mirrored(data, instance):
    register_splits(known_splits(data), instance)
    assert set(instance.get_dynamic_partitions("sam_split")) == set(known_splits(data))
    assert set(instance.get_dynamic_partitions("sam_training_split")) == {"train", "train-2026q4"}


def test_only_what_is_new_is_registered(data, instance):
    assert register_splits(["train", "val"], instance) == ["train", "val"]
    assert register_splits(["train", "val", "test"], instance) == ["test"]
    assert partition_requests(["train", "val", "test"], instance) == []
