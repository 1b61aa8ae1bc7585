import pytest
import torch

from sam_laplace_assets.demo.toy_sam import load_toy_sam
from sam_laplace_assets.domain.sam_decoder import FastDecoder
from sam_laplace_assets_tests.domain.shrunken_sam import shrunken_sam

POINTS = [1, 2, 3, 20, 2, 6, 14, 1]
NEAR_TIE = 1e-5


@pytest.fixture(scope="module", params=[load_toy_sam, shrunken_sam], ids=["toy", "shrunken"])
def stock(request):
    return request.param().requires_grad_(False)


def asked(stock, points=POINTS, seed=0):
    """Features of two images, and prompt sets with so many points, the rest of their labels being -1."""
    stream = torch.Generator().manual_seed(seed)
    side = stock.image_encoder.img_size
    image = torch.randn(2, 3, side, side, generator=stream)
    coords = side * torch.rand(len(points), max(points), 2, generator=stream)
    labels = torch.randint(2, (len(points), max(points)), generator=stream, dtype=torch.int)
    for row, count in zip(labels, points, strict=True):
        row[count:] = -1
    return stock.image_encoder(image), coords, labels


def plain(stock, features, coords, labels):
    """Logits and predicted IoUs of the stock decoder for one prompt set without padding."""
    keep = labels != -1
    sparse, dense = stock.prompt_encoder(points=(coords[keep][None], labels[keep][None]), boxes=None, masks=None)
    logits, ious = stock.mask_decoder(
        image_embeddings=features,
        image_pe=stock.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    return logits[0], ious[0]


def test_prompt_sets_of_any_sizes_on_two_images_are_answered_as_each_alone_by_the_stock_decoder(stock):
    features, coords, labels = asked(stock)
    decoder, side = FastDecoder(stock), features.shape[-1]
    images, counts = [decoder.image_side(one[None]) for one in features], [3, 5]
    decoded = decoder(images, counts, coords, labels, rows=side, columns=side)
    for place, ious in enumerate(decoded.ious):
        logits, expected = plain(stock, features[[int(place >= counts[0])]], coords[place], labels[place])
        torch.testing.assert_close(ious, expected, atol=1e-5, rtol=0)
        best, second = expected.sort(descending=True).values[:2]
        assert best - second > NEAR_TIE, "the test's own prompts tie: branches cannot be compared"
        assert decoded.branches[place] == expected.argmax()
        torch.testing.assert_close(decoded.logits[place], logits[decoded.branches[place]], atol=1e-3, rtol=0)


def test_where_padding_lies_changes_nothing(stock):
    features, coords, labels = asked(stock)
    decoder, side = FastDecoder(stock), features.shape[-1]
    elsewhere = torch.where(labels[..., None] == -1, 7.5 * torch.ones_like(coords), coords)
    first, second = (
        decoder([decoder.image_side(features[:1])], [len(POINTS)], one, labels, rows=side, columns=side)
        for one in (coords, elsewhere)
    )
    assert torch.equal(first.logits, second.logits)
    assert (first.ious == second.ious).all()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 16), (16, 3), (11, 9)])
def test_logits_of_a_part_of_the_image_are_those_of_the_whole(stock, rows, columns):
    features, coords, labels = asked(stock)
    decoder, side = FastDecoder(stock), features.shape[-1]
    image = [decoder.image_side(features[:1])]
    whole = decoder(image, [len(POINTS)], coords, labels, rows=side, columns=side).logits
    part = decoder(image, [len(POINTS)], coords, labels, rows=rows, columns=columns).logits
    assert part.shape == (len(POINTS), 4 * rows, 4 * columns)
    torch.testing.assert_close(part, whole[:, : 4 * rows, : 4 * columns], atol=1e-4, rtol=0)


def test_bfloat16_products_keep_the_masks(stock):
    """What a GPU does in bf16, here on the CPU: the same branches, off by a hundredth of the logits' spread."""
    features, coords, labels = asked(stock)
    decoder, side = FastDecoder(stock), features.shape[-1]

    def decode():
        return decoder([decoder.image_side(features[:1])], [len(POINTS)], coords, labels, rows=side, columns=side)

    exact = decode()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = decode()
    assert torch.equal(rounded.branches, exact.branches)
    assert (rounded.logits.float() - exact.logits).std() < 0.02 * exact.logits.std()


def test_what_is_asked_stays_as_it_was(stock):
    features, coords, labels = asked(stock)
    decoder, side = FastDecoder(stock), features.shape[-1]
    image, before = decoder.image_side(features[:1]), (features.clone(), coords.clone(), labels.clone())
    tokens = image.tokens.clone()
    for _ in range(2):
        decoder([image], [len(POINTS)], coords, labels, rows=side, columns=side)
    assert torch.equal(image.tokens, tokens)
    assert all(torch.equal(*pair) for pair in zip((features, coords, labels), before, strict=True))
