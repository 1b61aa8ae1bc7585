import functools

import pytest
import torch

from sam_laplace_assets.domain import sam_encoder
from sam_laplace_assets.domain.sam_encoder import (
    CompiledEncoder,
    FastEncoder,
    attend_in_pieces,
    attend_with_wide_keys,
)
from sam_laplace_assets_tests.domain.shrunken_sam import image_encoder

SHAPES = [
    {},  # 32 tokens a side, windows of 14: the last of three is cut to 4
    {"img_size": 256},  # 16 tokens: cut to 2
    {"img_size": 224},  # 14: one whole window
    {"img_size": 160},  # 10: one window, larger than the image
    {"img_size": 256, "window_size": 8, "num_heads": 3},  # windows that fit, heads of 32
    {"img_size": 256, "global_attn_indexes": ()},
    {"img_size": 256, "window_size": 0},
    {"img_size": 256, "use_rel_pos": False, "use_abs_pos": False, "qkv_bias": False},
]


def pixels(images, side):
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_features_are_those_of_the_stock_encoder(shape):
    stock = image_encoder(**shape)
    images = pixels(2, stock.img_size)
    features = FastEncoder(stock)(images)
    assert features.shape == (2, 64, stock.img_size // 16, stock.img_size // 16)
    assert features.dtype == torch.float32
    assert features.is_contiguous()
    torch.testing.assert_close(features, stock(images), atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gpus_way_of_attention_gives_the_same(shape, monkeypatch):
    stock = image_encoder(**shape)
    images = pixels(2, stock.img_size)
    monkeypatch.setattr(sam_encoder, "attend_in_pieces", attend_with_wide_keys)
    torch.testing.assert_close(FastEncoder(stock)(images), stock(images), atol=2e-5, rtol=0)


def test_it_is_compiled_in_one_piece_for_batches_of_one_size(monkeypatch):
    """By the real tracer, as on a GPU; what it gives is run as it stands, which takes no compiler's minutes."""
    compiled = []

    def as_it_stands(graph, examples):
        compiled.append(graph)
        return graph.forward

    compile = functools.partial(torch.compile, backend=as_it_stands, fullgraph=True)
    monkeypatch.setattr(sam_encoder.torch, "compile", compile)
    monkeypatch.setattr(sam_encoder, "attend_in_pieces", attend_with_wide_keys)
    encoder = FastEncoder(image_encoder(img_size=160))
    compiled_encoder = CompiledEncoder(encoder, images=3)
    for images in (3, 1, 2):
        batch = pixels(images, 160)
        torch.testing.assert_close(compiled_encoder(batch), encoder(batch), atol=1e-5, rtol=0)
    assert len(compiled) == 1


@pytest.mark.parametrize("attend", [attend_in_pieces, attend_with_wide_keys])
def test_attention_is_the_softmax_of_all_scores(attend):
    """Against the formula in float64: 2 windows of 5 x 5 keys, 3 heads, 7 queries."""
    stream = torch.Generator().manual_seed(0)
    queries, down, across = (torch.randn(2, 3, 7, n, generator=stream, dtype=torch.float64) for n in (4, 5, 5))
    keys, values = torch.randn(2, 2, 3, 25, 4, generator=stream, dtype=torch.float64)
    place = torch.arange(25)
    scores = queries @ keys.transpose(2, 3) + down[..., place // 5] + across[..., place % 5]
    out = torch.empty_like(queries)
    attend(queries, keys, values, down, across, out)
    torch.testing.assert_close(out, torch.softmax(scores, -1) @ values, atol=1e-12, rtol=0)


@pytest.mark.parametrize("at_once", [1, 300, 2_000, 10**9])
def test_the_size_of_pieces_changes_rounding_only(monkeypatch, at_once):
    stock = image_encoder(img_size=256)
    images = pixels(1, 256)
    expected = FastEncoder(stock)(images)
    monkeypatch.setattr(sam_encoder, "SCORES_AT_ONCE", at_once)
    monkeypatch.setattr(sam_encoder, "ROWS_AT_ONCE", 100)
    torch.testing.assert_close(FastEncoder(stock)(images), expected, atol=1e-5, rtol=0)


def test_images_of_a_batch_do_not_touch():
    encoder, images = FastEncoder(image_encoder(img_size=256)), pixels(3, 256)
    together = encoder(images)
    for image, features in zip(images, together, strict=True):
        torch.testing.assert_close(encoder(image[None])[0], features, atol=1e-5, rtol=0)


def test_what_goes_in_stays_as_it_was():
    stock, images = image_encoder(img_size=256), pixels(1, 256)
    before, weights = images.clone(), {name: weight.clone() for name, weight in stock.state_dict().items()}
    encoder = FastEncoder(stock)
    assert torch.equal(encoder(images), encoder(images))
    assert torch.equal(images, before)
    assert all(torch.equal(weight, weights[name]) for name, weight in stock.state_dict().items())


@pytest.mark.parametrize("shape", [{}, {"img_size": 256, "window_size": 8}], ids=str)
@pytest.mark.parametrize("attend", [attend_in_pieces, attend_with_wide_keys])
def test_bfloat16_is_off_by_a_few_hundredths_of_a_standard_deviation(shape, attend, monkeypatch):
    stock = image_encoder(**shape)
    images = pixels(1, stock.img_size)
    monkeypatch.setattr(sam_encoder, "attend_in_pieces", attend)
    features, exact = FastEncoder(stock, dtype=torch.bfloat16)(images), stock(images)
    assert features.dtype == torch.float32
    assert (features - exact).std() < 0.02 * exact.std()
    assert (features - exact).abs().max() < 0.1 * exact.std()
