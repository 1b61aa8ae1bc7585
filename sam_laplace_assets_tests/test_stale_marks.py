"""What Dagster's own UI marks as stale, asked of the real webserver."""

import json
import os
import urllib.request

import pytest

from sam_laplace_assets_tests.browser import serving
from sam_laplace_assets_tests.small_project import BASE, SPLIT_ASSETS

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
QUERY = """query Stale($key: AssetKeyInput!, $partition: String) {
  assetNodeOrError(assetKey: $key) { ... on AssetNode { staleStatus(partition: $partition) } }
}"""
PARTITIONS = [(asset, split) for split in BASE for asset in SPLIT_ASSETS]
PARTITIONS += [(asset, "train") for asset in ("head_checkpoint", "laplace_posterior")]
PARTITIONS += [(asset, None) for asset in ("all_samples", "validation_pack", "champion")]


def marks(address):
    """(asset, partition) -> FRESH, STALE or MISSING."""
    return {one: mark(address, *one) for one in PARTITIONS}


def mark(address, asset, partition):
    variables = {"key": {"path": [asset]}, "partition": partition}
    body = json.dumps({"query": QUERY, "variables": variables}).encode()
    request = urllib.request.Request(f"{address}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["data"]["assetNodeOrError"]["staleStatus"]


def test_equal_content_is_never_marked_stale_and_other_content_is(project):
    for path in (project.folder / "masks").rglob("*.*"):
        os.utime(path)
    for asset in ("all_samples", "manifest", "prompt_sets", "sam_cache", "hdf5_pack"):
        split = None if asset == "all_samples" else "val"
        config = {} if asset == "all_samples" else {"force": True}
        assert project.materialise(asset, split=split, **config).success
    with serving(project) as address:
        assert set(marks(address).values()) == {"FRESH"}
        assert project.materialise("prompt_sets", split="test", prompt_seed=5).success
        seen = marks(address)
    assert seen["prompt_sets", "test"] == "FRESH"
    assert seen["sam_cache", "test"] == "STALE"
    assert {one for one, found in seen.items() if found == "STALE"} <= {(asset, "test") for asset in SPLIT_ASSETS}
