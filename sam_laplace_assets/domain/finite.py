"""Pixels that must not be there: the error that names the item and the place of the first one."""

import torch
from torch import Tensor


def refuse_not_finite(values: Tensor, *, what: str, advice: str, first_item: int = 0) -> None:
    """ValueError if any of values (B, ...) is NaN or infinite; arguments as for `refuse_where`."""
    if not torch.isfinite(values.sum(dtype=torch.float64)):  # finite only if all terms are, and the faster question
        refuse_where(~torch.isfinite(values), values, what=what, advice=advice, first_item=first_item)


def refuse_where(broken: Tensor, values: Tensor, *, what: str, advice: str, first_item: int = 0) -> None:
    """ValueError if any pixel is broken.

    Args:
        broken: (B, ...) bool.
        values: (B, ...) that they were found in; (B,) are items without pixels, a single number is item 0.
        what: the quantity, as the error begins: "The logit variance".
        advice: what to do, a sentence.
        first_item: number of the first item, where the values are part of a stream.
    """
    places = broken.nonzero()
    if not len(places):
        return
    item, *pixel = places[0].tolist() or [0]
    value = values[tuple(places[0])].item()
    where = f" at pixel {tuple(pixel)}" if pixel else ""
    others = f" ({len(places)} such pixels in all)" if len(places) > 1 else ""
    raise ValueError(f"{what} of item {first_item + item} is {value:g}{where}{others}. {advice}")
