"""States that the rows of a run begin with: whether its data have any, and which models computed them.

Loads torch only where there are some.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.state import StateSpec, check_state_columns, models_of, state_schemas
from model.tables.parquet import Found

if TYPE_CHECKING:
    from model.config import ModelConfig
    from model.features.fitted_columns import FittedColumns

CURE = ", or leave the states out by data.initial_states=ignore"


@dataclass(frozen=True)
class InitialStates:
    """`spec` says what the states look like (None: all rows begin at zero); `models` are the fingerprints of those that
    computed them, and `unnamed_files` have states whose model nobody knows."""

    spec: StateSpec | None = None
    models: tuple[str, ...] = ()
    unnamed_files: int = 0

    @property
    def provenance(self) -> dict[str, Any]:
        """What a bundle says of them; nothing where there are none."""
        if self.spec is None:
            return {}
        return {"initial_states": {"models": list(self.models), "unnamed_files": self.unnamed_files}}

    def __str__(self) -> str:
        named = ", ".join(fingerprint[:12] for fingerprint in self.models)
        unnamed = f"files that name no model: {self.unnamed_files}" if self.unnamed_files else ""
        told = "; ".join(part for part in (named and f"of {named}", unnamed) if part)
        return (
            f"rows begin with the states in the data ({told or 'all null'}); data.initial_states=ignore leaves them out"
        )

    def to_plain(self) -> dict[str, Any]:
        """Plain data that is written as JSON."""
        spec = None if self.spec is None else self.spec.model_dump(mode="json")
        return {"spec": spec, "models": list(self.models), "unnamed_files": self.unnamed_files}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> InitialStates:
        """What `to_plain` described."""
        spec = None if plain["spec"] is None else StateSpec.model_validate(plain["spec"])
        return cls(spec, tuple(plain["models"]), plain["unnamed_files"])


class StatesFound:
    """The state columns of a run's files, held against the model: before the scan as far as can be, then exactly.

    The width of a step's input is known when the columns are fitted; few cells have a state that depends on it.
    """

    def __init__(self, model: ModelConfig, found: Sequence[Found]) -> None:
        self._model = model
        self._states = state_schemas({file: schema for each in found for file, schema in each.beside.items()})
        self.early = self._early() if self._states else None
        if self.early is not None:
            check_state_columns(self._states, self.early, CURE)

    def _early(self) -> StateSpec | None:
        from model.network.network import state_spec_of

        spec = state_spec_of(self._model, 1)
        return spec if spec == state_spec_of(self._model, 2) else None

    def fitted(self, columns: FittedColumns) -> InitialStates:
        """What training needs of them. StateError where they do not fit."""
        if not self._states:
            return InitialStates()
        import torch

        from model.network.network import InputLayer, state_spec_of

        with torch.device("meta"):
            width = InputLayer(columns).width
        spec = state_spec_of(self._model, width)
        check_state_columns(self._states, spec, CURE)
        models = list(models_of(self._states).values())
        named = sorted({fingerprint for fingerprint in models if fingerprint is not None})
        return InitialStates(spec, tuple(named), models.count(None))
