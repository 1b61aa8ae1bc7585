"""A head for tests whose last layer was fitted to some rows: its logits are on either side of 0, and often right."""

import torch

from sam_laplace_assets.domain.head import PromptHead, head_inputs
from sam_laplace_assets.domain.metrics import binary_nll
from sam_laplace_assets.domain.pack import MemoryRows
from sam_laplace_assets_tests.domain.some_rows import some_head


def fitted_head(rows: MemoryRows, *, steps: int = 40) -> PromptHead:
    head, x = some_head(), head_inputs(rows.inputs, logit_clip=20.0)
    head.final_conv.requires_grad_(True)
    optimiser = torch.optim.LBFGS(head.final_conv.parameters(), max_iter=steps)

    def loss():
        optimiser.zero_grad()
        value = binary_nll(head(x)[:, 0], rows.masks).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return head.requires_grad_(False)
