"""The packaged weights are what their card says, and stock Segment Anything takes them."""

import hashlib
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from sam_laplace_assets.demo.card import render_card
from sam_laplace_assets.demo.evaluate_toy_sam import TOLERANCE, held_out_samples, mean_iou
from sam_laplace_assets.demo.photos import coins, horse
from sam_laplace_assets.demo.toy_sam import TOY_CHECKPOINT, build_toy_sam, load_toy_sam


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    card: dict[str, Any] = json.loads(TOY_CHECKPOINT.with_name("toy_sam_card.json").read_text())
    return card


def test_the_weights_load_strictly_as_plain_float16_tensors() -> None:
    state = torch.load(TOY_CHECKPOINT, map_location="cpu", weights_only=True)
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert all(bool(value.isfinite().all()) for value in state.values())
    build_toy_sam().load_state_dict({name: value.float() for name, value in state.items()}, strict=True)


def test_the_weights_are_small_enough_to_travel_with_the_package() -> None:
    assert TOY_CHECKPOINT.stat().st_size <= 5_000_000


def test_sam_predictor_finds_the_horse() -> None:
    predictor = SamPredictor(load_toy_sam())
    sample = horse()
    predictor.set_image(sample.rgb())
    masks, qualities, low_res = predictor.predict(np.array([[210, 140], [20, 20]]), np.array([1, 0]))
    assert masks.shape == (3, *sample.mask.shape)
    assert low_res.shape == (3, 64, 64)
    best = masks[int(np.argmax(qualities))]
    assert best[140, 210]
    assert not best[20, 20]


def test_the_card_names_these_weights(card: dict[str, Any]) -> None:
    content = TOY_CHECKPOINT.read_bytes()
    assert card["sha256"] == hashlib.sha256(content).hexdigest()
    assert card["bytes"] == len(content)
    assert card["parameters"] == sum(parameter.numel() for parameter in build_toy_sam().parameters())


def test_the_card_in_markdown_says_what_the_one_in_json_says(card: dict[str, Any]) -> None:
    assert TOY_CHECKPOINT.with_name("toy_sam_card.md").read_text() == render_card(card)


def test_the_card_holds_on_the_first_held_out_scenes_and_the_coins(card: dict[str, Any]) -> None:
    sam = load_toy_sam()
    samples = list(held_out_samples(card["held_out_first"]["samples"]))
    assert mean_iou(sam, samples, pairs=(1, 10)) == {
        count: pytest.approx(card["held_out_first"]["iou"][count], abs=TOLERANCE) for count in ("1", "10")
    }
    assert mean_iou(sam, coins(), pairs=(10,))["10"] == pytest.approx(card["coins"]["iou"]["10"], abs=TOLERANCE)


def test_more_points_help(card: dict[str, Any]) -> None:
    for name in ("held_out", "coins"):
        values = list(card[name]["iou"].values())
        assert values == sorted(values)


def test_importing_the_toy_imports_no_heavy_library() -> None:
    code = "import sys, sam_laplace_assets.demo.toy_sam; print({'torch', 'segment_anything'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
