"""The toy SAM's card as Markdown, from the figures that were measured."""

from typing import Any

CARD = """\
# Toy SAM

A toy: Segment Anything's own classes at a size that runs on any machine ({parameters} parameters, images of 256
pixels, float16 weights of {megabytes} MB), trained from nothing on drawn scenes of textured shapes. It is there so that
the platform runs, and can be tested, without downloading a checkpoint. It knows shapes, not the world: no photograph
was trained on, and for work on real images a real SAM checkpoint is what you want.

| weights | SHA-256 |
|---|---|
| `{weights}` | `{sha256}` |

## What it reaches

Mean IoU of the mask that SAM itself would choose (highest predicted IoU of three) by `SamPredictor`'s plain route, for
k pairs of one point on the object and one off it:

| | objects | k = 1 | k = 3 | k = 10 |
|---|---|---|---|---|
{rows}

The held-out scenes come from the generator of the training scenes with other seeds. The coins are scikit-image's
`coins()`, each cut out with its neighbours partly in view, masks by watershed, {draws} draws of points a coin. Neither
was trained on. Training again should give figures within {tolerance} of these.

## How it was trained

```
python -m sam_laplace_assets.demo.train_toy_sam --scenes {scenes} --steps {steps} --seed {seed}
python -m sam_laplace_assets.demo.evaluate_toy_sam
```

{seconds} seconds on a CPU, drawing of the scenes included, with {threads}. This card is written by the second command.
"""


def render_card(card: dict[str, Any]) -> str:
    """Markdown of a card."""
    training = card["training"]
    return CARD.format(
        parameters=f"{card['parameters']:,}",
        megabytes=f"{card['bytes'] / 1e6:.1f}",
        weights=card["weights"],
        sha256=card["sha256"],
        rows="\n".join(
            render_row(name, card[key]) for name, key in (("held-out scenes", "held_out"), ("coins", "coins"))
        ),
        draws=card["coins"]["draws"],
        tolerance=card["tolerance"],
        seconds=f"{training['seconds']:,}",
        threads="one thread" if training["threads"] == 1 else f"{training['threads']} threads",
        **{key: training[key] for key in ("scenes", "steps", "seed")},
    )


def render_row(name: str, result: dict[str, Any]) -> str:
    """A row of the table: its name, the number of objects, the IoU by number of pairs."""
    return f"| {name} | {result['samples']} | " + " | ".join(f"{iou:.2f}" for iou in result["iou"].values()) + " |"
