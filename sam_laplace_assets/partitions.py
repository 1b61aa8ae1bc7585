"""The splits as Dagster partitions: which there are, and what a key must look like."""

from collections.abc import Iterable

import dagster as dg

from sam_laplace_assets.domain.manifest import PARTITION_ROLES, check_split_key
from sam_laplace_assets.settings import DataSettings
from sam_laplace_assets.storage.project import SplitUnknown, named_splits, roots_of

# Names of dynamic partitions are shared by the whole Dagster instance, hence the prefix.
splits = dg.DynamicPartitionsDefinition(name="sam_split")
training_splits = dg.DynamicPartitionsDefinition(name="sam_training_split")


def known_splits(data: DataSettings) -> list[str]:
    """The base splits, then the named ones that have data."""
    return [*PARTITION_ROLES, *named_splits(data)]


def is_training_split(key: str) -> bool:
    """Whether heads are trained on this split."""
    return check_split_key(key) == "train"


def check_split(key: str, data: DataSettings) -> str:
    """The key itself, if it is a split that has data.

    Raises:
        SplitUnknown: it is no plain name, has no role or no data; names the splits that exist.
    """
    try:
        roots_of(data, key)
    except ValueError as error:
        raise SplitUnknown(f"{error} Known splits: {', '.join(known_splits(data))}.") from error
    return key


def require_split(key: str, data: DataSettings) -> str:
    """`check_split` for assets: raises `dagster.Failure`, which is not tried again."""
    try:
        return check_split(key, data)
    except SplitUnknown as error:
        raise dg.Failure(str(error), allow_retries=False) from error


def require_training_split(key: str, data: DataSettings) -> str:
    """The key itself, if it is a split with role `train` that has data. Raises `dagster.Failure` otherwise."""
    require_split(key, data)
    if not is_training_split(key):
        raise dg.Failure(
            f"Split {key!r} is no training split: heads are trained on splits with role train, such as 'train' or "
            "'train-2026q4'. Delete this key from the training splits.",
            allow_retries=False,
        )
    return key


def partition_requests(known: Iterable[str], instance: dg.DagsterInstance) -> list[dg.AddDynamicPartitionsRequest]:
    """What must be added so that the instance has these splits, the training ones mirrored."""
    wanted = {splits: list(known)}
    wanted[training_splits] = [key for key in wanted[splits] if is_training_split(key)]
    requests = []
    for definition, keys in wanted.items():
        there = set(instance.get_dynamic_partitions(str(definition.name)))
        if new := [key for key in keys if key not in there]:
            requests.append(definition.build_add_request(new))
    return requests


def register_splits(known: Iterable[str], instance: dg.DagsterInstance) -> list[str]:
    """Add these splits to the instance, and give those that were new."""
    requests = partition_requests(known, instance)
    for request in requests:
        instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
    return sorted({key for request in requests for key in request.partition_keys})
