"""The toy SAM: Segment Anything's own classes at a size that runs anywhere, with weights in the package."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segment_anything.modeling import ImageEncoderViT, Sam

TOY_CHECKPOINT: Path = Path(__file__).with_name("toy_sam.pt")

IMAGE_SIZE = 256
PATCH_SIZE = 16
WIDTH = 160
PROMPT_WIDTH = 128


def build_toy_sam() -> "Sam":
    """Toy SAM with random weights, in evaluation mode; `TOY_CHECKPOINT` holds the trained ones as float16."""
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    side = IMAGE_SIZE // PATCH_SIZE
    sam = Sam(
        image_encoder=build_image_encoder(),
        prompt_encoder=PromptEncoder(
            embed_dim=PROMPT_WIDTH,
            image_embedding_size=(side, side),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=PROMPT_WIDTH, mlp_dim=256, num_heads=4),
            transformer_dim=PROMPT_WIDTH,
            iou_head_depth=3,
            iou_head_hidden_dim=PROMPT_WIDTH,
        ),
        pixel_mean=[123.675, 116.28, 103.53],
        pixel_std=[58.395, 57.12, 57.375],
    )
    return sam.eval()


def build_image_encoder() -> "ImageEncoderViT":
    """ViT of four blocks on 16x16 patches; the second and the last attend to the whole image."""
    import torch
    from segment_anything.modeling import ImageEncoderViT

    return ImageEncoderViT(
        img_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        embed_dim=WIDTH,
        depth=4,
        num_heads=4,
        mlp_ratio=4,
        out_chans=PROMPT_WIDTH,
        qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=8,
        global_attn_indexes=(1, 3),
    )


def load_toy_sam(checkpoint: Path = TOY_CHECKPOINT) -> "Sam":
    """Toy SAM with the weights of a checkpoint, as float32 on the CPU."""
    import torch

    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    sam = build_toy_sam()
    sam.load_state_dict({name: value.float() for name, value in state.items()}, strict=True)
    return sam
