"""A stock SAM of vit_b's shape, made smaller: 32 x 32 tokens, windows of 14 that stand out over them."""

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

SIDE, WIDTH = 512, 64


def image_encoder(**changes):
    """ViT with seeded random weights; its tables of positions, which are born as zeros, too."""
    torch.manual_seed(0)
    options = {
        "img_size": SIDE, "patch_size": 16, "embed_dim": 96, "depth": 4, "num_heads": 4, "out_chans": WIDTH,
        "norm_layer": partial(torch.nn.LayerNorm, eps=1e-6), "use_rel_pos": True, "window_size": 14,
        "global_attn_indexes": (1, 3),
    }  # fmt: skip
    encoder = ImageEncoderViT(**options | changes)
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if "pos" in name:
                weight.normal_(0, 0.3)
    return encoder.eval().requires_grad_(False)


def shrunken_sam():
    """Its masks' logits reach tens, and its predicted IoUs are far enough apart to choose a branch by."""
    encoder = image_encoder()
    model = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=WIDTH, image_embedding_size=(32, 32), input_image_size=(SIDE, SIDE), mask_in_chans=16
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=128, num_heads=8),
            transformer_dim=WIDTH,
            iou_head_depth=3,
            iou_head_hidden_dim=64,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    with torch.no_grad():
        for mlp in model.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(300)
        model.mask_decoder.iou_prediction_head.layers[-1].weight.mul_(10)
    return model.eval()
