"""Tables of `prompt_scores`, in its report `reports/prompt_scores/<split>/`; the report's format is in reports.py.

suggestions   a row a suggested point: which answer, rank (1 is the best), x and y in original pixels, x_256 and y_256
              in those of the maps, whether the model expects the object there (`positive`), the strategy's score, and
              probability, entropy and mutual information (nats) and variance (squared logits) at that pixel
maps          a row a (sample, prompt set): how its maps stand as a whole, see `domain.scores.MapSummary`;
              `best_score` is that of its first suggestion
"""

from collections.abc import Iterator

import h5py
import numpy as np
import pyarrow as pa

from sam_laplace_assets.storage.enclosed import require_enclosed
from sam_laplace_assets.storage.pack import Pack, PackRefused, open_pack

ASSET = "prompt_scores"
_ANSWER = [
    ("sample_id", pa.string()), ("safe_id", pa.string()), ("promptset_id", pa.int64()), ("k_pairs", pa.int64()),
]  # fmt: skip
SUGGESTIONS = pa.schema(
    [
        *_ANSWER, ("rank", pa.int64()), ("x", pa.int64()), ("y", pa.int64()), ("x_256", pa.int64()),
        ("y_256", pa.int64()), ("positive", pa.bool_()), ("score", pa.float64()), ("probability", pa.float64()),
        ("entropy", pa.float64()), ("mutual_information", pa.float64()), ("variance", pa.float64()),
    ]
)  # fmt: skip
MAPS = pa.schema(
    [
        *_ANSWER, ("n_pos", pa.int64()), ("n_neg", pa.int64()),
        ("mean_mutual_information", pa.float64()), ("max_mutual_information", pa.float64()),
        ("boundary_mutual_information", pa.float64()), ("mean_entropy", pa.float64()), ("max_entropy", pa.float64()),
        ("undecided_fraction", pa.float64()), ("foreground_fraction", pa.float64()), ("expected_iou", pa.float64()),
        ("suggestions", pa.int64()), ("best_score", pa.float64()),
    ]
)  # fmt: skip
TABLES = {"suggestions": SUGGESTIONS, "maps": MAPS}


def rows_digests(pack: Pack) -> dict[str, str]:
    """safe_id -> digest of what its rows in a pack were made from, as its shard says; the arrays are not read.

    Raises:
        PackRefused: the pack is not whole, or was replaced after it was opened.
    """
    with open_pack(pack.path) as file:
        if file.attrs["data_version"] != pack.data_version:
            raise PackRefused(f"{pack.path} was replaced after it was opened by this run. Run again.")
        places = sorted(_places(file["mask"]))
    digests: dict[str, np.ndarray] = {}
    for _, _, shard, _ in places:
        if shard not in digests:
            with h5py.File(pack.path.parent / shard, "r", locking=False) as opened:
                require_enclosed(pack.path.parent / shard, opened)
                digests[shard] = opened["rows_digest"].asstr()[:]
    found = [str(digests[shard][first + at]) for _, count, shard, first in places for at in range(count)]
    return dict(zip(pack.safe_ids, found, strict=True))


def _places(masks: h5py.Dataset) -> Iterator[tuple[int, int, str, int]]:
    """(first sample of the pack, how many, shard, first sample there) of each run of samples."""
    for source in masks.virtual_sources():
        (start, *_), (stop, *_) = source.vspace.get_select_bounds()
        (first, *_), _ = source.src_space.get_select_bounds()
        yield start, stop - start + 1, source.file_name, first
