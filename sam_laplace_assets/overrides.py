"""What the launchpad can override, for one run."""

from collections.abc import Mapping
from typing import Any, TypeVar

import dagster as dg
from pydantic import Field, ValidationError

from sam_laplace_assets.settings import Section, explain

S = TypeVar("S", bound=Section)

ONCE = {"force", "resplit", "sanity_check", "title_to"}  # asked for once; no part of what is made

GO_ON = dg.RetryPolicy(max_retries=2, delay=2)  # a step that was killed goes on where it was

FORCE = Field(False, description="make everything again, also what is there and current")
LIMIT = Field(None, ge=1, description="a trial: only the first so many samples; the partition is incomplete then")


class Overrides(dg.Config):
    """Values for one run; empty means as in the settings.

    What was given is remembered with what it made, and holds until that is materialised with other values or none.
    """

    def over(self, section: S) -> S:
        """The settings' section with the values that were given in the launchpad.

        Raises:
            dagster.Failure: a value is not possible; names it.
        """
        given = {key: value for key, value in self.given().items() if key in type(section).model_fields}
        try:
            return type(section).model_validate(section.model_dump() | given)
        except ValidationError as error:
            told = f"The launchpad's fields are not valid:\n{explain(error)}"
            raise dg.Failure(told, allow_retries=False) from error

    def given(self) -> dict[str, Any]:
        """What was filled in."""
        return _filled(self.model_dump())

    def lasting(self) -> dict[str, Any]:
        """What was filled in and is part of what was made."""
        return lasting(self.model_dump())


def lasting(config: Mapping[str, Any]) -> dict[str, Any]:
    """What was filled in of a launchpad's fields, and is part of what was made."""
    return {key: value for key, value in _filled(config).items() if key not in ONCE}


def _filled(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if value is not None and value is not False}
