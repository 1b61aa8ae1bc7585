"""A Segment Anything that is small enough for tests."""

from functools import partial

import numpy as np
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch.nn import functional

from sam_laplace_assets.domain.prompts import PromptSet

SIDE, WIDTH = 256, 32


def small_sam(width=WIDTH):
    """Segment Anything at 256 pixels, with seeded random weights scaled so that its logits reach tens."""
    torch.manual_seed(0)
    model = Sam(
        image_encoder=ImageEncoderViT(
            img_size=SIDE,
            patch_size=16,
            embed_dim=width,
            depth=2,
            num_heads=2,
            out_chans=WIDTH,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=8,
            global_attn_indexes=(1,),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH, image_embedding_size=(16, 16), input_image_size=(SIDE, SIDE), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=64, num_heads=2),
            transformer_dim=WIDTH,
            iou_head_depth=3,
            iou_head_hidden_dim=32,
        ),
    )
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(300)
        model.mask_decoder.iou_prediction_head.layers[-1].weight.mul_(10)
    return model.eval()


def picture(size, seed=0):
    """Smooth colours with noise on them, (H, W, 3) uint8."""
    stream = np.random.default_rng(seed)
    coarse = torch.as_tensor(stream.random((1, 3, 5, 5)))
    smooth = functional.interpolate(coarse, size, mode="bilinear")[0].permute(1, 2, 0).numpy()
    return (255 * np.clip(smooth + 0.1 * stream.standard_normal((*size, 3)), 0, 1)).astype(np.uint8)


def prompts(size, pairs=range(1, 11)):
    stream = np.random.default_rng(1)

    def points(k):
        return tuple((int(stream.integers(size[1])), int(stream.integers(size[0]))) for _ in range(k))

    return [PromptSet(index, points(k), points(k)) for index, k in enumerate(pairs)]
