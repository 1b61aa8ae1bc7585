"""Many configurations of the posterior of one head, fitted in one pass over training rows and judged in another.

Curvature and scores are sums over training rows that no configuration changes: the full H gives the diagonal one,
temperature and prior precision come after it. So a configuration costs its share of one pass over validation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from torch import nn

from sam_laplace_assets.domain.curvature import Curvature, fit_curvature, resolve_temperature
from sam_laplace_assets.domain.evidence import Evidence
from sam_laplace_assets.domain.judging import Form, Judged, judge
from sam_laplace_assets.domain.pack import Progress, Rows
from sam_laplace_assets.domain.prior import PriorMethod, checked_grid, choose_prior_precision

APPROXIMATIONS = ("diagonal", "full")
TEMPERATURES: tuple[float | str, ...] = (1.0, "image_cluster", 10.0, 100.0)
MARGINAL_LIKELIHOOD: Literal["marginal_likelihood"] = "marginal_likelihood"


@dataclass(frozen=True)
class Configuration:
    """How one posterior is fitted.

    Attributes:
        approx: `diagonal` or `full`.
        likelihood_temperature: a positive number, or `image_cluster`.
        prior_precision: a positive number, or `marginal_likelihood`.
    """

    approx: str
    likelihood_temperature: float | str
    prior_precision: float | str

    @property
    def method(self) -> PriorMethod:
        """What gives the prior precision."""
        return MARGINAL_LIKELIHOOD if self.prior_precision == MARGINAL_LIKELIHOOD else "grid"


@dataclass(frozen=True)
class Swept:
    """One configuration with what it came to; NLLs in nats, means over validation's pixels.

    Attributes:
        approx, likelihood_temperature: of the configuration; the temperature as it was set.
        temperature: the number that it stands for.
        prior: `grid` where the precision was given, or `marginal_likelihood`.
        prior_precision: the number.
        log_marginal_likelihood: nats, of the training pack at this temperature.
        val_nll: of the probit predictive.
        map_nll: of the head without a posterior; the same in each.
        ece: 15 bins of the probability of foreground.
        mean_variance: of the logits, squared logits.
        mean_information: mutual information in nats, over some pixels of each row.
        logit_scale, scaled_val_nll: the best factor on the logits and the NLL with it; None where none is best.
        beats_head: whether `val_nll` is below `map_nll`.
        of_settings: whether it is what the settings in force ask for.
    """

    approx: str
    likelihood_temperature: str
    temperature: float
    prior: str
    prior_precision: float
    log_marginal_likelihood: float
    val_nll: float
    map_nll: float
    ece: float
    mean_variance: float
    mean_information: float
    logit_scale: float | None
    scaled_val_nll: float | None
    beats_head: bool
    of_settings: bool = False


def default_sweep(prior_precision_grid: Sequence[float]) -> list[Configuration]:
    """Both approximations, four temperatures, and each precision of the grid or the most likely one: all of these."""
    priors: tuple[float | str, ...] = (*checked_grid(prior_precision_grid), MARGINAL_LIKELIHOOD)
    return [
        Configuration(approx, temperature, prior)
        for approx, temperature, prior in product(APPROXIMATIONS, TEMPERATURES, priors)
    ]


def asked_for(approx: str, temperature: float | str, prior: str, grid: Sequence[float]) -> list[Configuration]:
    """What a fit with these settings tries, before it chooses one."""
    priors = checked_grid(grid) if prior == "grid" else (MARGINAL_LIKELIHOOD,)
    return [Configuration(approx, temperature, precision) for precision in priors]


def diagonal_of(curvature: Curvature) -> Curvature:
    """The diagonal curvature, from a full one of the same pass."""
    return replace(curvature, hessian=curvature.hessian.diagonal().clone(), approx="diagonal")


def sweep(
    head: nn.Module,
    training: Rows,
    validation: Rows,
    configurations: Sequence[Configuration],
    *,
    settings: Sequence[Configuration],
    target_layer: str = "final_conv",
    logit_clip: float,
    batch_size: int,
    device: Any = "cpu",
    progress: Progress | None = None,
) -> list[Swept]:
    """Fit and judge all configurations, the lowest validation NLL first.

    Args:
        head: at its MAP weights.
        training: the rows that it was trained on.
        validation: the rows that all are judged on.
        configurations: what is compared.
        settings: what a fit with the settings in force tries, as `asked_for` gives it; what it would choose is compared
            too, whether or not it is among the configurations.
    """
    passes: dict[str, Any] = {"logit_clip": logit_clip, "batch_size": batch_size, "device": device,
                              "progress": progress}  # fmt: skip
    full = fit_curvature(head, training, target_layer=target_layer, approx="full", **passes)
    fits = [_Fit.of(one, full) for one in _each_once([*configurations, *settings])]
    fits = [fit for approx in APPROXIMATIONS for fit in fits if fit.configuration.approx == approx]
    judged = judge(head, full, _forms(fits), validation, in_detail=True, **passes)
    found = {fit.configuration: _swept(fit, judged, i) for i, fit in enumerate(fits)}
    own = _chosen({one: found[one] for one in settings})
    found[own] = replace(found[own], of_settings=True)
    return sorted((found[one] for one in _each_once([*configurations, own])), key=lambda one: one.val_nll)


@dataclass(frozen=True)
class _Fit:
    """A configuration with its curvature and the numbers that it stands for."""

    configuration: Configuration
    curvature: Curvature
    temperature: float
    prior_precision: float
    log_marginal_likelihood: float

    @classmethod
    def of(cls, one: Configuration, full: Curvature) -> "_Fit":
        curvature = full if one.approx == "full" else diagonal_of(full)
        temperature = resolve_temperature(curvature, one.likelihood_temperature)
        evidence = Evidence.of(curvature, temperature=temperature)
        precision = evidence.most_likely() if one.method == MARGINAL_LIKELIHOOD else float(one.prior_precision)
        return cls(one, curvature, temperature, precision, evidence.at(precision))


def _forms(fits: Sequence[_Fit]) -> list[Form]:
    """One form for each approximation, in the order of the fits, which are sorted by it."""
    groups = ([fit for fit in fits if fit.configuration.approx == approx] for approx in APPROXIMATIONS)
    return [Form.of(group[0].curvature, [(fit.temperature, fit.prior_precision) for fit in group])
            for group in groups if group]  # fmt: skip


def _swept(fit: _Fit, judged: Judged, i: int) -> Swept:
    one, scale, details = fit.configuration, judged.scale(i), judged.details
    return Swept(
        approx=one.approx,
        likelihood_temperature=_shown(one.likelihood_temperature),
        temperature=fit.temperature,
        prior=one.method,
        prior_precision=fit.prior_precision,
        log_marginal_likelihood=fit.log_marginal_likelihood,
        val_nll=judged.nll[i],
        map_nll=judged.map_nll,
        ece=float(details.ece[i]),
        mean_variance=float(details.mean_variance[i]),
        mean_information=float(details.mean_information[i]),
        logit_scale=None if scale is None else scale.value,
        scaled_val_nll=None if scale is None else scale.nll_after,
        beats_head=judged.nll[i] < judged.map_nll,
    )


def _shown(temperature: float | str) -> str:
    return temperature if isinstance(temperature, str) else f"{temperature:g}"


def _chosen(tried: dict[Configuration, Swept]) -> Configuration:
    """What a fit that tries these would take, by the rule of `choose_prior_precision`."""
    grid = [one.prior_precision for one in tried.values()]
    nll = [one.val_nll for one in tried.values()]
    chosen = choose_prior_precision(grid, nll, map_nll=0.0).chosen
    return list(tried)[grid.index(chosen)]


def _each_once(configurations: Iterable[Configuration]) -> list[Configuration]:
    """In order, without repetitions."""
    return list(dict.fromkeys(configurations))
