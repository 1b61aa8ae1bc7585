"""The table of posterior_sweep: a row a configuration, the lowest validation NLL first.

Columns as `sam_laplace_assets.domain.sweep.Swept` describes them; `logit_scale` and `scaled_val_nll` are null where no
factor on the logits is best.
"""

import pyarrow as pa

ASSET = "posterior_sweep"
TABLE = "configurations"
NUMBERS = (
    "prior_precision", "log_marginal_likelihood", "val_nll", "map_nll", "ece", "mean_variance", "mean_information",
    "logit_scale", "scaled_val_nll",
)  # fmt: skip
SCHEMA = pa.schema(
    [
        ("approx", pa.string()), ("likelihood_temperature", pa.string()), ("temperature", pa.float64()),
        ("prior", pa.string()), *((name, pa.float64()) for name in NUMBERS),
        ("beats_head", pa.bool_()), ("of_settings", pa.bool_()),
    ]
)  # fmt: skip
TABLES = {TABLE: SCHEMA}
