"""SAM's image encoder with the weights of the stock one, and without what that wastes.

A global block is a block whose window is the whole image, so both kinds go one way. Tokens lie in the order of a
block's windows, and only those of the image are computed: where windows stand out over it, all padding has one key and
one value, the biases of their projections.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from sam_laplace_assets.domain.transfer import sent

SCORES_AT_ONCE = 512 * 4096
"""Attention scores computed at once on a CPU: 8 MiB of float32. Fewer wait for threads, more leave the cache."""
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""All but cuDNN's, which PyTorch asks first on newer GPUs and which may refuse keys that are wider than values."""
ROWS_AT_ONCE = 1024
"""Tokens that go through an MLP at once on a CPU, for the same reason."""


class FastEncoder:
    """A stock image encoder, computed faster.

    Weights and what is multiplied with them are of one precision; the sum that runs through the blocks and its norms
    are float32 always. On a CPU attention goes in pieces that stay in its cache. On a GPU relative positions become
    part of queries and keys, q.k + h[row of k] + w[column of k] = (q, h, w).(k, onehot of row, onehot of column), so
    that no bias of tokens x tokens is ever held.

    Args:
        encoder: its weights are used where they are; in another precision they are copied.
        dtype: float32 or bfloat16.
    """

    def __init__(self, encoder: ImageEncoderViT, *, dtype: torch.dtype = torch.float32) -> None:
        self._patches, self._neck, self._position = encoder.patch_embed.proj, encoder.neck, encoder.pos_embed
        self._patch = int(self._patches.kernel_size[0])
        self._side = int(encoder.img_size) // self._patch
        self._dtype = dtype
        self._blocks = [_FastBlock.of(block, self._side, dtype) for block in encoder.blocks]
        self._raster = _Tiling.over(self._side, self._side)
        self._orders: dict[tuple[int, int, int], Tensor] = {}

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of images.

        Args:
            pixels: (B, 3, S, S) float32, normalised and padded as `Sam.preprocess` does, on the weights' device.

        Returns:
            (B, C, S / patch, S / patch) float32.
        """
        images = pixels.shape[0]
        self.remember_orders(images)
        stream, lying = self._embed_patches(pixels), self._raster
        for block in self._blocks:
            stream, lying = self._reorder(stream, images, lying, block.tiling), block.tiling
            block.attend(stream, images)
            block.transform(stream)
        return self._compress(self._reorder(stream, images, lying, self._raster), images)

    def remember_orders(self, images: int) -> None:
        """Have on the device what batches of so many images need to know, once: a GPU is not to wait for it."""
        lying = [self._raster, *(block.tiling for block in self._blocks), self._raster]
        for now, then in pairwise(lying):
            key = (images, now.window, then.window)
            if now.window != then.window and key not in self._orders:
                order = now.places(images).argsort()[then.places(images)]
                self._orders[key] = sent(order, self._patches.weight.device)

    def _reorder(self, stream: Tensor, images: int, now: "_Tiling", then: "_Tiling") -> Tensor:
        """(B x tokens, width) that lies in one tiling, in another."""
        return stream if now.window == then.window else stream[self._orders[images, now.window, then.window]]

    def bytes_per_image(self) -> int:
        """What a GPU holds beside the weights for each image of a batch, from above."""
        tokens = self._side**2
        return max(tokens * block.bytes_per_token() for block in self._blocks)

    def _embed_patches(self, pixels: Tensor) -> Tensor:
        """(B x tokens, width) float32: each patch times its kernel, and where it lies."""
        cells = (self._side, self._patch)
        patches = pixels.to(self._dtype).view(*pixels.shape[:2], *cells, *cells).permute(0, 2, 4, 1, 3, 5)
        kernels, bias = self._patches.weight.flatten(1).to(self._dtype), _cast(self._patches.bias, self._dtype)
        tokens = functional.linear(patches.reshape(pixels.shape[0], self._side**2, -1), kernels, bias).float()
        return (tokens if self._position is None else tokens + self._position.flatten(1, 2)).flatten(0, 1)

    def _compress(self, stream: Tensor, images: int) -> Tensor:
        """The neck, whose norms over channels are plain ones where channels come last."""
        narrow, norm, mix, last_norm = self._neck
        tokens = functional.linear(stream.to(self._dtype), narrow.weight.flatten(1).to(self._dtype))
        maps = _norm_channels(norm, tokens).to(self._dtype).view(images, self._side, self._side, -1)
        mixed = functional.conv2d(maps.permute(0, 3, 1, 2), mix.weight.to(self._dtype), padding=mix.padding)
        return _norm_channels(last_norm, mixed.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()


class CompiledEncoder:
    """A fast encoder that PyTorch compiles when the first batch comes, for one size: another would take minutes again.

    Args:
        encoder: as it is; batches of half the size or less go through it.
        images: of a whole batch; one that lacks some is filled up.
    """

    def __init__(self, encoder: FastEncoder, *, images: int) -> None:
        self._encoder, self._images = encoder, images
        self._compiled = torch.compile(encoder, dynamic=False)

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Features of images, no more than a whole batch, as `FastEncoder` gives them."""
        lacking = self._images - len(pixels)
        if len(pixels) <= lacking:
            return self._encoder(pixels)
        self._encoder.remember_orders(self._images)
        features: Tensor = self._compiled(functional.pad(pixels, (0, 0, 0, 0, 0, 0, 0, lacking)))
        return features[: len(pixels)]


class _Group(NamedTuple):
    """Equally large windows of an image: how many, and the (rows, columns) of tokens in each."""

    windows: int
    rows: int
    columns: int


@dataclass(frozen=True)
class _Tiling:
    """How the tokens of an image lie: group after group, window after window, row after row.

    Attributes:
        window: side of a whole window, in tokens.
        groups: whole windows first, then those that the image's edge cuts.
        order: (tokens,) raster index of the token at each place.
    """

    window: int
    groups: tuple[_Group, ...]
    order: Tensor

    @classmethod
    def over(cls, side: int, window: int) -> "_Tiling":
        """Windows over an image of side x side tokens."""
        spans = torch.split(torch.arange(side), window)
        whole, cut = [one for one in spans if len(one) == window], [one for one in spans if len(one) < window]
        groups, order = [], []
        for down, across in product((whole, cut), (whole, cut)):
            if down and across:
                groups.append(_Group(len(down) * len(across), len(down[0]), len(across[0])))
                order += [(side * rows[:, None] + columns).flatten() for rows, columns in product(down, across)]
        return cls(window, tuple(groups), torch.cat(order))

    def places(self, images: int) -> Tensor:
        """(images x tokens,) where each token of a batch lies in raster order; images lie within groups."""
        parts = torch.split(self.order, [group.windows * group.rows * group.columns for group in self.groups])
        starts = len(self.order) * torch.arange(images)[:, None]
        return torch.cat([(starts + part).flatten() for part in parts])


@dataclass(frozen=True, eq=False)
class _FastBlock:
    """One block of the transformer: its norms, and its weights in one precision.

    Attributes:
        block: the stock one.
        tiling: its windows.
        dtype: precision of the weights.
        qkv, out, widen, narrow: (weight, bias) of its four linear maps.
        down, across: (window, window, head width) relative positions of query and key rows, and columns.
    """

    block: Block
    tiling: _Tiling
    dtype: torch.dtype
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    widen: tuple[Tensor, Tensor]
    narrow: tuple[Tensor, Tensor]
    down: Tensor
    across: Tensor

    @classmethod
    def of(cls, block: Block, side: int, dtype: torch.dtype) -> "_FastBlock":
        """The stock block, for images of side x side tokens."""
        attention, window = block.attn, block.window_size or side
        linear = (attention.qkv, attention.proj, block.mlp.lin1, block.mlp.lin2)
        qkv, out, widen, narrow = ((one.weight.detach().to(dtype), _bias(one).to(dtype)) for one in linear)
        down, across = (_relative_positions(attention, axis, window).to(dtype) for axis in ("h", "w"))
        return cls(block, _Tiling.over(side, window), dtype, qkv, out, widen, narrow, down, across)

    @property
    def heads(self) -> int:
        """Heads of the attention."""
        return int(self.block.attn.num_heads)

    def bytes_per_token(self) -> int:
        """Memory for one token: queries, keys and values, those with positions, and the MLP's two hidden layers."""
        width, hidden = self.qkv[0].shape[1], self.widen[0].shape[0]
        wide = self.heads * 2 * (width // self.heads + 2 * self.tiling.window + 8)
        return self.dtype.itemsize * (6 * width + wide + 2 * hidden) + 4 * 4 * width

    def attend(self, stream: Tensor, images: int) -> None:
        """Add what attention makes of the tokens to them.

        Args:
            stream: (B x tokens, width) float32 in this block's tiling; is written to.
            images: B.
        """
        qkv = functional.linear(self.block.norm1(stream).to(self.dtype), *self.qkv)
        mixed, start = torch.empty_like(stream, dtype=self.dtype), 0
        for group in self.tiling.groups:
            end = start + images * group.windows * group.rows * group.columns
            self._attend_within(qkv[start:end], group, mixed[start:end])
            start = end
        stream += functional.linear(mixed, *self.out)

    def _attend_within(self, qkv: Tensor, group: _Group, mixed: Tensor) -> None:
        """Attention in windows of one shape: (n x tokens, 3 x width) to (n x tokens, width), written to `mixed`."""
        grid = qkv.view(-1, group.rows, group.columns, 3, self.heads, mixed.shape[1] // self.heads)
        queries, keys, values = grid.permute(3, 0, 4, 1, 2, 5)
        down = torch.einsum("nhrcd,rkd->nhrck", queries, self.down[: group.rows]).flatten(2, 3)
        across = torch.einsum("nhrcd,ckd->nhrck", queries, self.across[: group.columns]).flatten(2, 3)
        _, key_bias, value_bias = self.qkv[1].view(3, self.heads, 1, 1, -1)
        keys, values = self._padded(keys, key_bias), self._padded(values, value_bias)
        scaled = (queries * self.block.attn.scale).flatten(2, 3)
        attention = attend_with_wide_keys if qkv.is_cuda else attend_in_pieces
        attention(scaled, keys, values, down, across, mixed.view(len(grid), -1, *grid.shape[-2:]).transpose(1, 2))

    def _padded(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """(n, heads, rows, columns, d) as (n, heads, window x window, d), the padding being zeros projected."""
        window = self.tiling.window
        if tokens.shape[2:4] == (window, window):
            return tokens.flatten(2, 3).contiguous()
        whole = bias.repeat(len(tokens), 1, window, window, 1)
        whole[:, :, : tokens.shape[2], : tokens.shape[3]] = tokens
        return whole.flatten(2, 3)

    def transform(self, stream: Tensor) -> None:
        """Add what the MLP makes of each token to it; a float32 (B x tokens, width) that is written to."""
        for rows in torch.split(stream, len(stream) if stream.is_cuda else ROWS_AT_ONCE):
            hidden = functional.linear(self.block.norm2(rows).to(self.dtype), *self.widen)
            rows.add_(functional.linear(self.block.mlp.act(hidden), *self.narrow))


def attend_in_pieces(queries: Tensor, keys: Tensor, values: Tensor, down: Tensor, across: Tensor, out: Tensor) -> None:
    """Softmax attention, for about `SCORES_AT_ONCE` scores at a time.

    Args:
        queries: (n, heads, T, d), scaled.
        keys, values: (n, heads, window x window, d).
        down, across: (n, heads, T, window) what is added to scores by the key's row, and by its column.
        out: (n, heads, T, d), written to.
    """
    attend = _attend_fused if queries.dtype == torch.float32 else _attend_in_steps
    scratch = queries.new_empty(2, 0)
    for piece in _pieces(queries, keys.shape[2]):
        rows, columns = down[piece][..., None], across[piece][..., None, :]
        if scratch.shape[1] < (count := rows.numel() * columns.shape[-1]):
            scratch = queries.new_empty(2, count)
        bias = torch.add(rows, columns, out=scratch[0, :count].view(*rows.shape[:-1], columns.shape[-1])).flatten(3)
        out[piece] = attend(queries[piece], keys[piece[:2]], values[piece[:2]], bias, scratch[1, :count])


def _attend_fused(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, _: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=1.0)


def _attend_in_steps(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scratch: Tensor) -> Tensor:
    """The same, by products: PyTorch's fused attention does not multiply bfloat16 as fast as they do."""
    scores = bias.flatten(0, 1).baddbmm_(queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2))
    weights = torch.softmax(scores, -1, out=scratch.view_as(scores))
    return (weights @ values.flatten(0, 1)).view_as(queries)


def _pieces(queries: Tensor, keys: int) -> Iterator[tuple[slice, slice, slice]]:
    """Slices of windows, heads and rows that together are all queries: whole windows if they fit, else rows of one."""
    windows, heads, rows, _ = queries.shape
    rows_each = max(1, min(rows, SCORES_AT_ONCE // keys))
    heads_each = max(1, min(heads, SCORES_AT_ONCE // (keys * rows_each)))
    windows_each = max(1, SCORES_AT_ONCE // (keys * rows * heads)) if heads_each == heads else 1
    ranges = ((windows, windows_each), (heads, heads_each), (rows, rows_each))
    yield from product(*([slice(at, at + each) for at in range(0, count, each)] for count, each in ranges))


def attend_with_wide_keys(
    queries: Tensor, keys: Tensor, values: Tensor, down: Tensor, across: Tensor, out: Tensor
) -> None:
    """The same as `attend_in_pieces` in one call, the relative positions being part of queries and keys."""
    window = down.shape[-1]
    unit = torch.eye(window, dtype=keys.dtype, device=keys.device)
    places = torch.cat([unit.repeat_interleave(window, 0), unit.repeat(window, 1)], -1).expand(*keys.shape[:3], -1)
    fill = (0, -(queries.shape[-1] + 2 * window) % 8)
    wide_queries = functional.pad(torch.cat([queries, down, across], -1), fill)
    wide_keys = functional.pad(torch.cat([keys, places], -1), fill)
    with sdpa_kernel(KERNELS):
        out.copy_(functional.scaled_dot_product_attention(wide_queries, wide_keys, values, scale=1.0))


def _relative_positions(attention: Attention, axis: str, window: int) -> Tensor:
    """(window, window, head width): what a query's place along one axis is multiplied with for each key's."""
    if not attention.use_rel_pos:
        return torch.zeros(window, window, attention.qkv.in_features // attention.num_heads)
    table: Tensor = getattr(attention, f"rel_pos_{axis}").detach()
    positions: Tensor = get_rel_pos(window, window, table)
    return positions


def _bias(linear: torch.nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()


def _cast(bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if bias is None else bias.to(dtype)


def _norm_channels(norm: LayerNorm2d, tokens: Tensor) -> Tensor:
    """LayerNorm over the last axis, in float32."""
    return functional.layer_norm(tokens.float(), norm.weight.shape, norm.weight, norm.bias, norm.eps)
