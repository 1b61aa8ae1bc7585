"""The head keeps the image's size, its inputs are clipped, and a seed decides its weights."""

import pytest
import torch

from sam_laplace_assets.domain.head import PromptHead, build_head, frozen_copy, head_inputs, restore_head


@pytest.mark.parametrize("size", [(256, 256), (5, 9), (1, 1)])
def test_the_head_keeps_any_image_size(size):
    assert PromptHead()(torch.zeros(2, 3, *size)).shape == (2, 1, *size)


def test_the_last_layer_of_the_head_has_17_parameters():
    assert sum(parameter.numel() for parameter in PromptHead().final_conv.parameters()) == 17


def test_head_inputs_clip_the_logits_alone_and_leave_the_stored_rows_untouched():
    stored = torch.tensor([-300.0, -20.0, 3.0, 65504.0]).half().expand(2, 3, 4).reshape(2, 3, 2, 2).clone()
    before = stored.clone()
    inputs = head_inputs(stored, logit_clip=20.0)
    assert inputs.dtype == torch.float32
    assert inputs[0, 0].flatten().tolist() == [-20.0, -20.0, 3.0, 20.0]
    assert torch.equal(inputs[:, 1:], before[:, 1:].float())
    assert torch.equal(stored, before)
    assert head_inputs(inputs, logit_clip=1.0)[0, 0, 0, 0] == -1
    assert inputs[0, 0, 0, 0] == -20


def test_a_seed_decides_the_weights_whatever_was_drawn_before_and_after():
    torch.manual_seed(1)
    first = build_head(channels_in=3, hidden_channels=16, seed=7).state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    again = build_head(channels_in=3, hidden_channels=16, seed=7).state_dict()
    other = build_head(channels_in=3, hidden_channels=16, seed=8).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_head_comes_back_from_its_state_with_its_sizes():
    head = build_head(channels_in=3, hidden_channels=5, seed=3)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(restore_head(head.state_dict())(x), head(x))


def test_a_state_that_is_no_finite_head_is_refused():
    state = PromptHead().state_dict()
    with pytest.raises(ValueError, match=r"no 4-d conv1.weight among \['weight'\]"):
        restore_head({"weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="Missing key"):
        restore_head({name: value for name, value in state.items() if name != "final_conv.bias"})
    with pytest.raises(ValueError, match="weights are not finite"):
        restore_head(state | {"final_conv.bias": torch.tensor([float("nan")])})


def test_a_head_without_channels_is_refused():
    with pytest.raises(ValueError, match="at least one channel, found channels_in=3, hidden_channels=0"):
        PromptHead(hidden_channels=0)


def test_a_frozen_copy_shares_nothing_with_the_head():
    head = PromptHead()
    copied = frozen_copy(head, device="cpu")
    copied.final_conv.bias.fill_(5.0)
    assert head.final_conv.bias.item() != 5.0
    assert head.final_conv.bias.requires_grad
    assert not copied.training
