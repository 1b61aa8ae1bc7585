"""SAM's mask decoder with the weights of the stock one, for prompt sets of any sizes on any images in one call.

What depends on the image alone is computed once an image: its tokens, and their projections in the first layer. Prompt
sets are padded to the longest, and the padding is masked out of attention: that changes no answer. Only the branch of
highest predicted IoU gets a mask, and only where the image is not padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor
from torch.nn import functional

from sam_laplace_assets.domain.transfer import sent

UPSCALING = 4
"""Pixels of a mask along a side of an image token."""


class Projections(NamedTuple):
    """What a layer's two cross attentions make of image tokens: (B, heads, N, d) each."""

    keys: Tensor
    values: Tensor
    queries: Tensor


@dataclass(frozen=True, eq=False)
class ImageSide:
    """What all prompt sets of an image share.

    Attributes:
        tokens: (1, N, C) features by rows, with the embedding that stands for no mask.
        projections: of the first layer.
    """

    tokens: Tensor
    projections: Projections


@dataclass(frozen=True, eq=False)
class Decoded:
    """What the decoder says to B prompt sets.

    Attributes:
        logits: (B, 4 rows, 4 columns) of the chosen branch.
        branches: (B,) int64 index of the branch of highest predicted IoU, the first of equals.
        ious: (B, branches) float32 predicted IoUs.
    """

    logits: Tensor
    branches: Tensor
    ious: Tensor


class FastDecoder:
    """A stock prompt encoder and mask decoder, computed faster: equal to rounding.

    Args:
        model: its weights are used where they are.
    """

    def __init__(self, model: Sam) -> None:
        self._prompt_encoder, self._decoder = model.prompt_encoder, model.mask_decoder
        with torch.no_grad():
            self._positions = model.prompt_encoder.get_dense_pe().flatten(2).transpose(1, 2).contiguous()
            layers = [_Layer(block, self._positions) for block in model.mask_decoder.transformer.layers]
        self._first, self._others = layers[0], layers[1:]

    @property
    def image_tokens(self) -> int:
        """Tokens of an image."""
        return int(self._positions.shape[1])

    def bytes_per_prompt_set(self) -> int:
        """What a GPU holds for each prompt set of a batch, from above, for up to 40 prompt tokens."""
        scores = 2 * 40 * int(self._decoder.transformer.num_heads)
        return 4 * self.image_tokens * (16 * int(self._positions.shape[2]) + scores)

    @torch.no_grad()
    def image_side(self, features: Tensor) -> ImageSide:
        """What all prompt sets of an image share.

        Args:
            features: (1, C, h, w) of the encoder.
        """
        no_mask = self._prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        tokens = (features + no_mask).flatten(2).transpose(1, 2).contiguous()
        return ImageSide(tokens, self._first.project(tokens))

    @torch.no_grad()
    def __call__(
        self, images: Sequence[ImageSide], counts: Sequence[int], coords: Tensor, labels: Tensor, *,
        rows: int, columns: int,
    ) -> Decoded:  # fmt: skip
        """The best branch for B prompt sets, those of an image one after another.

        Args:
            images: the images that are asked about.
            counts: how many of the B are about each.
            coords: (B, K, 2) float32 points, (x, y) in SAM's padded input; on the CPU, as labels are.
            labels: (B, K) int: 1 on the object, 0 outside it, -1 where a set has no more points.
            rows: rows of image tokens, from the top, that logits are wanted of.
            columns: columns of them, from the left.
        """
        prompts = self._embed_prompts(*(sent(one, self._positions.device) for one in (coords, labels)))
        queries, tokens = self._exchange(images, counts, prompts, _padding(labels, prompts))
        outputs = self._look_once_more(self._used(queries), self._used(prompts), tokens)
        with torch.autocast(outputs.device.type, enabled=False):  # branches differ by less than bfloat16 can tell
            ious: Tensor = self._decoder.iou_prediction_head(outputs[:, 0].float())[:, 1:]
        branches = _first_of_highest(ious)
        kernels = self._kernels(outputs[:, 1:])[torch.arange(len(ious), device=ious.device), branches]
        return Decoded(self._draw(tokens, kernels, rows, columns), branches, ious)

    def _used(self, tokens: Tensor) -> Tensor:
        """Those of (B, T, C) that answers are read from; mask token 0 is for prompts with one answer only."""
        return torch.cat([tokens[:, :1], tokens[:, 2 : 1 + self._decoder.num_mask_tokens]], dim=1)

    def _embed_prompts(self, coords: Tensor, labels: Tensor) -> Tensor:
        """(B, T, C): the tokens that answers are read from, the points, and the one that ends them.

        As the stock prompt encoder makes them, in float32 always: it waits for a GPU to say which labels are which.
        """
        encoder = self._prompt_encoder
        ended = functional.pad(coords + 0.5, (0, 0, 0, 1)), functional.pad(labels, (0, 1), value=-1)
        with torch.autocast(coords.device.type, enabled=False):
            places = encoder.pe_layer.forward_with_coords(ended[0], encoder.input_image_size)
            kinds = torch.cat([one.weight for one in encoder.point_embeddings[:2]])
            points = places + kinds[ended[1].clamp(0)]
        points = torch.where(ended[1][..., None] < 0, encoder.not_a_point_embed.weight, points)
        outputs = torch.cat([self._decoder.iou_token.weight, self._decoder.mask_tokens.weight])
        return torch.cat([outputs.expand(len(points), -1, -1), points], dim=1)

    def _exchange(
        self, images: Sequence[ImageSide], counts: Sequence[int], prompts: Tensor, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Prompt tokens (B, T, C) and image tokens (B, N, C) after the layers."""
        sets = torch.split(prompts, list(counts))
        paddings = [None] * len(images) if padding is None else torch.split(padding, list(counts))
        parts = zip(images, sets, paddings, strict=True)
        first = [self._first(one.tokens, mine, mine, where, one.projections) for one, mine, where in parts]
        queries, tokens = first[0] if len(first) == 1 else (torch.cat(side) for side in zip(*first, strict=True))
        for layer in self._others:
            queries, tokens = layer(tokens, queries, prompts, padding, layer.project(tokens))
        return queries, tokens

    def _look_once_more(self, queries: Tensor, prompts: Tensor, tokens: Tensor) -> Tensor:
        """The few prompt tokens (B, t, C) that answers are read from, after their last look at the image tokens.

        Key and value projections are done on these few: q.(K x) is (K^T q).x, and a mean of V x is V times a mean of x.
        The bias of the keys adds one number to all scores of a token, which softmax takes away.
        """
        look: Attention = self._decoder.transformer.final_attn_token_to_image
        of_keys, of_values = (
            torch.unflatten(one.weight, 0, (look.num_heads, -1)) for one in (look.k_proj, look.v_proj)
        )
        asked = _by_head(look.q_proj(queries + prompts), look.num_heads)
        wide = torch.einsum("bhtd,hdc->bhtc", asked, of_keys).flatten(1, 2)
        scores = wide @ tokens.transpose(1, 2) + wide @ self._positions.transpose(1, 2)
        seen = torch.softmax(scores * asked.shape[-1] ** -0.5, dim=-1) @ tokens
        values = torch.einsum("bhtc,hdc->bthd", torch.unflatten(seen, 1, (look.num_heads, -1)), of_values)
        answer = look.out_proj(values.flatten(2) + look.v_proj.bias)
        normed: Tensor = self._decoder.transformer.norm_final_attn(queries + answer)
        return normed

    def _kernels(self, outputs: Tensor) -> Tensor:
        """(B, branches, c): what each branch multiplies the upscaled image with."""
        networks = list(self._decoder.output_hypernetworks_mlps)[1:]
        return torch.stack([network(one) for network, one in zip(networks, outputs.unbind(1), strict=True)], dim=1)

    def _draw(self, tokens: Tensor, kernels: Tensor, rows: int, columns: int) -> Tensor:
        """(B, 4 rows, 4 columns) logits: image tokens, upscaled twice, times a kernel (B, c) of each set."""
        side = self._prompt_encoder.image_embedding_size
        kept = torch.unflatten(tokens, 1, side)[:, :rows, :columns].flatten(1, 2)
        parts = zip(*(torch.split(one, len(kept) if kept.is_cuda else 1) for one in (kept, kernels)), strict=True)
        drawn = [self._upscale(*part) for part in parts]
        cells = torch.cat(drawn).view(-1, rows, columns, 2, 2, 2, 2)
        return cells.permute(0, 1, 3, 5, 2, 4, 6).reshape(len(cells), UPSCALING * rows, UPSCALING * columns)

    def _upscale(self, tokens: Tensor, kernels: Tensor) -> Tensor:
        """(B, n, 4, 4) logits of n tokens: quarters of each, and quarters of those.

        A transposed convolution whose stride is its size is a linear map of each token to its four quarters.
        """
        larger, norm, act, largest, last_act = self._decoder.output_upscaling
        quarters = _into_quarters(larger, tokens)
        quarters = act(functional.layer_norm(quarters, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        sixteenths = last_act(_into_quarters(largest, quarters))
        logits: Tensor = sixteenths.flatten(1, 3) @ kernels[..., None]
        return logits.view(*sixteenths.shape[:-1])


class _Layer:
    """One layer of the two-way transformer, its three projections of the image tokens as one."""

    def __init__(self, block: TwoWayAttentionBlock, positions: Tensor) -> None:
        self._block = block
        read, write = block.cross_attn_token_to_image, block.cross_attn_image_to_token
        placed, plain = torch.cat([read.k_proj.weight, write.q_proj.weight]), read.v_proj.weight
        self._weight = torch.cat([placed, plain])
        of_place = functional.linear(positions, placed, torch.cat([read.k_proj.bias, write.q_proj.bias]))
        self._constant = torch.cat([of_place, read.v_proj.bias.expand(1, positions.shape[1], -1)], dim=-1)

    def project(self, tokens: Tensor) -> Projections:
        """Image tokens (B, N, C) as this layer's attention sees them."""
        projected = functional.linear(tokens, self._weight).add_(self._constant)
        heads = self._block.cross_attn_token_to_image.num_heads
        keys, queries, values = (_by_head(one, heads) for one in projected.chunk(3, dim=-1))
        return Projections(keys, values, queries)

    def __call__(
        self, tokens: Tensor, queries: Tensor, prompts: Tensor, padding: Tensor | None, seen: Projections
    ) -> tuple[Tensor, Tensor]:
        """Prompt tokens (B, T, C) and image tokens (B, N, C) after this layer.

        Args:
            tokens: (B or 1, N, C) image tokens.
            queries: (B, T, C) prompt tokens.
            prompts: (B, T, C) what they were at first, which is where they are.
            padding: (B, 1, 1, T), what is added to scores of each prompt token; None adds nothing.
            seen: projections of `tokens`.
        """
        block = self._block
        queries = block.norm1(self._among(queries, prompts, padding))
        queries = block.norm2(queries + self._read(queries + prompts, seen))
        queries = block.norm3(queries + block.mlp(queries))
        written = self._write(queries, queries + prompts, padding, seen)
        return queries, block.norm4(written.add_(tokens) if written.dtype == tokens.dtype else written + tokens)

    def _among(self, queries: Tensor, prompts: Tensor, padding: Tensor | None) -> Tensor:
        attention = self._block.self_attn
        if self._block.skip_first_layer_pe:
            return _attend(attention, queries, queries, queries, padding)
        placed = queries + prompts
        return queries + _attend(attention, placed, placed, queries, padding)

    def _read(self, placed: Tensor, seen: Projections) -> Tensor:
        """What prompt tokens take from the image; where the image is the same for all sets, as if they were one."""
        attention, (sets, count) = self._block.cross_attn_token_to_image, placed.shape[:2]
        asked = attention.q_proj(placed)
        asked = asked.flatten(0, 1)[None] if len(seen.keys) == 1 else asked
        mixed = functional.scaled_dot_product_attention(_by_head(asked, attention.num_heads), seen.keys, seen.values)
        answer: Tensor = attention.out_proj(_together(mixed).view(sets, count, -1))
        return answer

    def _write(self, queries: Tensor, placed: Tensor, padding: Tensor | None, seen: Projections) -> Tensor:
        """What image tokens take from prompt tokens, image tokens last: far faster than softmax along the few."""
        attention = self._block.cross_attn_image_to_token
        keys, values = (attention.k_proj(placed), attention.v_proj(queries))
        keys, values = (_by_head(one, attention.num_heads) for one in (keys, values))
        scores = (keys * keys.shape[-1] ** -0.5) @ seen.queries.transpose(2, 3)
        if padding is not None:
            scores += padding.transpose(2, 3)
        mixed = values.transpose(2, 3) @ torch.softmax(scores, dim=2)
        answer: Tensor = attention.out_proj(mixed.flatten(1, 2).transpose(1, 2))
        return answer


def _attend(attention: Attention, queries: Tensor, keys: Tensor, values: Tensor, padding: Tensor | None) -> Tensor:
    """Stock attention, blind for keys that are padding."""
    projected = (attention.q_proj(queries), attention.k_proj(keys), attention.v_proj(values))
    query, key, value = (_by_head(one, attention.num_heads) for one in projected)
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=padding)
    answer: Tensor = attention.out_proj(_together(mixed))
    return answer


def _by_head(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, heads x d) as (B, heads, N, d)."""
    return torch.unflatten(tokens, -1, (heads, -1)).transpose(1, 2)


def _together(tokens: Tensor) -> Tensor:
    """(B, heads, N, d) as (B, N, heads x d)."""
    return tokens.transpose(1, 2).flatten(2)


def _padding(labels: Tensor, prompts: Tensor) -> Tensor | None:
    """(B, 1, 1, T): minus infinity where a prompt token is padding, zero elsewhere; None where none is.

    A stock prompt ends with one token that is no point, and keeps it: padding is what there is beyond it.
    """
    points = (labels != -1).sum(1, keepdim=True)
    if bool((points == labels.shape[1]).all()):
        return None
    extra = torch.arange(prompts.shape[1]) >= prompts.shape[1] - labels.shape[1] + points
    return sent(torch.where(extra, -torch.inf, 0.0)[:, None, None].to(prompts.dtype), prompts.device)


def _first_of_highest(ious: Tensor) -> Tensor:
    """(B,) index of the highest of each row (B, branches), the first of equals; `argmax` may give any of them."""
    falling = torch.arange(ious.shape[1], 0, -1, device=ious.device)
    return ((ious == ious.amax(1, keepdim=True)) * falling).argmax(1)


def _into_quarters(convolution: torch.nn.ConvTranspose2d, tokens: Tensor) -> Tensor:
    """(..., C) as (..., 4, c): the 2 x 2 pixels, by rows, that a transposed convolution makes of each."""
    weight, bias = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2), convolution.bias
    quarters = functional.linear(tokens, weight, None if bias is None else bias.repeat(4))
    return torch.unflatten(quarters, -1, (4, -1))
