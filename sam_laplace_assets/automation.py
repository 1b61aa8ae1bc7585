"""What happens by itself: splits become partitions."""

import dagster as dg

from sam_laplace_assets.partitions import known_splits, partition_requests
from sam_laplace_assets.settings import load_settings


@dg.sensor(minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING)
def register_split_partitions(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    """Makes partitions of train, val, test and of every named split that has data, and training splits of some."""
    known = known_splits(load_settings().data)
    requests = partition_requests(known, context.instance)
    if not requests:
        return dg.SkipReason(f"All {len(known)} splits are partitions: {', '.join(known)}.")
    return dg.SensorResult(dynamic_partitions_requests=requests)
