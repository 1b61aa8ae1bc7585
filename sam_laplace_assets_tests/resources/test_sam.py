"""One model for all partitions that a process makes, and another one where anything of it differs."""

import shutil

import pytest

from sam_laplace_assets.demo.toy_sam import TOY_CHECKPOINT
from sam_laplace_assets.resources.sam import SamModel
from sam_laplace_assets.settings import SamSettings


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copy(TOY_CHECKPOINT, tmp_path / "toy.pt")


def frozen(checkpoint, **changes):
    return SamModel(SamSettings(model_type="toy", checkpoint=checkpoint, device="cpu", **changes), None).frozen


def test_partitions_made_by_one_process_share_a_model(checkpoint):
    assert frozen(checkpoint) is frozen(checkpoint)


def test_another_precision_is_another_model(checkpoint):
    assert frozen(checkpoint, precision="bf16").precision == "bf16" != frozen(checkpoint).precision


def test_a_checkpoint_that_changed_is_loaded_again(checkpoint):
    import torch

    before = frozen(checkpoint)
    weights = torch.load(checkpoint, weights_only=True)
    torch.save({name: weight * 2 for name, weight in weights.items()}, checkpoint)
    after = frozen(checkpoint)
    first, second = (next(iter(one._model.state_dict().values())) for one in (before, after))
    assert torch.equal(first * 2, second)
