"""Plans of manifests, indices and panels."""

import io
from collections.abc import Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from sam_laplace_assets.domain.plan import Item, Plan, digest
from sam_laplace_assets.storage import index, panels
from sam_laplace_assets.storage.manifest import Assignment


def row(key: str, split: str | None = "train", **more: Any) -> dict[str, Any]:
    """A valid row of a manifest, or with `valid=False` a refused one."""
    name = key.replace("__", "/")
    return {
        "sample_id": name, "safe_id": key, "class": name.split("/")[0], "split": split, "image_path": f"{name}.png",
        "mask_path": f"{name}.npy", "image_h": 9, "image_w": 8, "mask_h": 9, "mask_w": 8, "foreground_fraction": 0.25,
        "image_digest": digest([key, "image"]), "mask_digest": digest([key, "mask"]), "valid": True, "reason": None,
    } | more  # fmt: skip


REFUSED: dict[str, Any] = dict.fromkeys(("split", "mask_path", "image_h", "image_w", "mask_h", "mask_w",
                                         "foreground_fraction", "image_digest", "mask_digest"))  # fmt: skip


def manifest_plan(keys: Sequence[str], work: Any = None, **more: Any) -> Plan:
    """Rows that are given splits at the end: those that are remembered, the others in turn; one file is refused."""

    def read(item: Item, parts: frozenset[str]) -> dict[str, Any]:
        if work is not None:
            work.made.append((item.key, parts))
        if item.key == "NA__x":
            return row(item.key, **{**REFUSED, "valid": False, "reason": 'no mask, not "NA"\nnor é'})
        return row(item.key, split=None)

    def assign(rows: Sequence[Any], kept: Any) -> Any:
        splits = dict(kept)
        for one in (one for one in rows if one["valid"] and one["sample_id"] not in kept):
            split = ("train", "val")[len(splits) % 2]
            splits[one["sample_id"]] = Assignment(split, one["image_digest"])
        return [{**one, "split": splits[one["sample_id"]].split} if one["valid"] else one for one in rows], splits

    names = [*keys, "NA__x"]
    return Plan([Item(key, {"row": f"seen {key}"}) for key in names], make=read, finish=assign, **more)


def index_frame(keys: Sequence[str]) -> pd.DataFrame:
    """Two rows a sample."""
    taken = ("sample_id", "safe_id", "image_path", "image_h", "image_w", "mask_path", "image_digest", "mask_digest")
    rows = []
    for key in keys:
        for at in range(2):
            arrays = {f"{name}_path": f"{key}/{at}/{name}.npy" for name in ("logits_256", "pos_map", "neg_map")}
            sums = {f"{name}_sha256": digest([key, at, name]) for name in ("logits_256", "pos_map", "neg_map")}
            shared = {name: row(key)[name] for name in taken}
            numbers = {"promptset_id": at, "k_pairs": at + 1, "n_pos": at + 3, "n_neg": at + 1}
            rows.append(shared | arrays | sums | numbers | {"split": "val"})
    return pd.DataFrame(rows, columns=index.SCHEMA.names)


def index_plan(keys: Sequence[str], *, complete: bool = True, work: Any = None) -> Plan:
    """One table."""
    frame = index_frame(keys)
    rows_digest = digest(frame.to_dict("list"))

    def give(item: Item, parts: frozenset[str]) -> pa.Table:
        if work is not None:
            work.made.append((item.key, parts))
        return pa.Table.from_pandas(frame, schema=index.SCHEMA, preserve_index=False)

    item = Item("val", {index.PART: digest([rows_digest, complete])}, (rows_digest, complete))
    return Plan([item], make=give, complete=complete)


def panel_plan(keys: Sequence[str], *, seed: int = 0, work: Any = None) -> Plan:
    """A small picture a sample."""
    from PIL import Image

    def draw(item: Item, parts: frozenset[str]) -> bytes:
        if work is not None:
            work.made.append((item.key, parts))
        buffer = io.BytesIO()
        Image.new("RGB", (4, 3), (seed, len(item.key), 0)).save(buffer, "PNG")
        return buffer.getvalue()

    return Plan([Item(key, {panels.PART: digest([key, seed])}) for key in keys], make=draw)
