"""`sam-laplace predict`: calibrated masks, probability and mutual information of images without masks."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sam_laplace_assets.storage import images
from sam_laplace_assets.storage.predictions import MapFormat, names_of, write_prediction, write_summary
from sam_laplace_assets.storage.store import NotMade

if TYPE_CHECKING:
    from sam_laplace_assets.resources.annotator import Annotator, Click

Tell = Callable[[str], None]
Points = list["Click"]


class PointsRefused(ValueError):
    """Points that cannot be read."""


def predict_images(
    paths: Sequence[Path],
    *,
    points: str | None,
    points_file: Path | None,
    out: Path,
    posterior: str | None,
    map_format: MapFormat,
    tell: Tell,
) -> list[str]:
    """Predict images, each by itself, and write what is found.

    Args:
        paths: images; all of the points file's if there are none.
        points: "x,y,label x,y,label", for every image.
        points_file: a CSV or JSON with points for each image.
        out: folder to write to.
        posterior: a run id or a posterior's folder; the champion if None.
        map_format: of probability and mutual information.
        tell: hears of each image.

    Returns:
        What could not be predicted, a line each; the others are written.

    Raises:
        ClickException: nothing can be: no points, no posterior, no SAM.
    """
    try:
        wanted = wanted_points(paths, points, points_file)
        annotator = _load(posterior)
    except (ValueError, NotMade, OSError) as error:
        raise click.ClickException(str(error)) from error
    found: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for name, (path, its_points) in zip(names_of(list(wanted)), wanted.items(), strict=True):
        try:
            found.append(predict_image(annotator, path, its_points, out, name, map_format))
        except (ValueError, OSError) as error:
            failed.append({"image": str(path), "error": str(error)})
            tell(f"{path}: failed")
        else:
            tell(f"{path}: {found[-1]['foreground_fraction']:.1%} foreground; {out / name}_*")
    write_summary(out, used(annotator), found, failed)
    return [f"{one['image']}: {one['error']}" for one in failed]


def _load(posterior: str | None) -> "Annotator":
    from sam_laplace_assets.resources.annotator import load_annotator

    return load_annotator(posterior)


def predict_image(
    annotator: "Annotator", path: Path, points: Points, out: Path, name: str, map_format: MapFormat
) -> dict[str, Any]:
    """Predict one image and write its files; what predictions.json says of it."""
    from sam_laplace_assets.assets.score_pictures import draw_prediction
    from sam_laplace_assets.resources.annotator import clicks

    image = images.read_image(path)
    prompt_set = clicks(points, image.shape[:2])
    prediction, following = annotator.predict(image, points), annotator.suggest_prompts(image, points)
    picture = draw_prediction(image, prediction.mask, prediction.probability, prediction.mutual_information, prompt_set,
                              following, title=path.name)  # fmt: skip
    sha256 = write_prediction(out, name, prediction, picture, map_format=map_format)
    return {"image": str(path), "image_digest": images.pixel_digest(image), "height": image.shape[0],
            "width": image.shape[1], "points": {"pos": prompt_set.pos, "neg": prompt_set.neg},
            "foreground_fraction": float(prediction.mask.mean()), "next_points": [asdict(one) for one in following],
            "sha256": sha256}  # fmt: skip


def used(annotator: "Annotator") -> dict[str, Any]:
    """What predictions were made with."""
    by = annotator.identity
    return {
        "posterior": {"run_id": by.run_id, "state_sha256": by.state_sha256, "logit_scale": by.logit_scale},
        "sam": {"model_type": by.model_type, "checkpoint": by.sam_checkpoint, "sha256": by.sam_sha256},
        "gaussian_sigma": by.gaussian_sigma, "rule": asdict(annotator.rule),
    }  # fmt: skip


def wanted_points(paths: Sequence[Path], points: str | None, points_file: Path | None) -> dict[Path, Points]:
    """Each image with its points; one that the points file does not name has none.

    An image of the points file is named by a path, relative to that file's folder, or as on the command line, or by its
    file name alone where no two images share it.
    """
    if points_file is not None and points is None:
        return _of_file(paths, points_file)
    if points is None or points_file is not None:
        raise PointsRefused("Give the points either as --points or as --points-file.")
    if not paths:
        raise PointsRefused("Name the images that these points are on.")
    return dict.fromkeys(paths, parse_points(points))


def _of_file(paths: Sequence[Path], points_file: Path) -> dict[Path, Points]:
    listed = read_points_file(points_file)
    there = {name: points_file.parent / name for name in listed}
    if not paths:
        return {there[name]: its_points for name, its_points in listed.items()}
    return {path: _points_of(path, listed, there, paths) for path in paths}


def _points_of(path: Path, listed: Mapping[str, Points], there: Mapping[str, Path], paths: Sequence[Path]) -> Points:
    alone = sum(one.name == path.name for one in paths) == 1
    for name, its_points in listed.items():
        if name == str(path) or there[name].resolve() == path.resolve() or (alone and name == path.name):
            return its_points
    return []


def parse_points(text: str) -> Points:
    """The points of "x,y,label x,y,label"; a semicolon separates them as well."""
    return [_click(part.split(","), part) for part in text.replace(";", " ").split()]


def read_points_file(path: Path) -> dict[str, Points]:
    """Image -> points, from a CSV with columns image, x, y, label, or a JSON object image -> [[x, y, label], ...].

    Raises:
        PointsRefused: it is neither; names the file, and the line of a CSV.
    """
    try:
        rows = list(_rows_of_json(path) if path.suffix.lower() == ".json" else _rows_of_csv(path))
    except (OSError, UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise PointsRefused(f"{path} cannot be read as points: {error}. Give a CSV or a JSON file.") from error
    listed: dict[str, Points] = {}
    for image, points in rows:
        listed.setdefault(image, []).extend(points)
    if not listed:
        raise PointsRefused(f"{path} holds no points.")
    return listed


def _rows_of_csv(path: Path) -> Iterator[tuple[str, Points]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if lacking := {"image", "x", "y", "label"} - set(reader.fieldnames or ()):
            raise PointsRefused(f"{path} has no column {', '.join(sorted(lacking))}: it needs image, x, y and label.")
        for row in reader:
            where = f"line {reader.line_num} of {path}"
            yield str(row["image"]), [_click([row["x"], row["y"], row["label"]], where)]


def _rows_of_json(path: Path) -> Iterator[tuple[str, Points]]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict) or not all(isinstance(points, list) for points in value.values()):
        raise PointsRefused(f"{path} is no object of image -> [[x, y, label], ...].")
    for image, points in value.items():
        where = f"{image} in {path}"
        yield image, [_click(point if isinstance(point, list) else [point], where) for point in points]


def _click(parts: Sequence[Any], where: str) -> "Click":
    try:
        x, y, label = (float(part) for part in parts)
    except (TypeError, ValueError) as error:
        found = ",".join(map(str, parts))
        raise PointsRefused(f"{found!r} ({where}) is no point: give x,y,label, the label 1 on the object and 0 beside "
                            "it.") from error  # fmt: skip
    if label not in (0, 1):
        raise PointsRefused(f"Label {label:g} ({where}) is neither 1, on the object, nor 0, beside it.")
    return x, y, label
