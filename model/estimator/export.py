"""The estimator's exports: its model as a directory that other runtimes read. Knows no training."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from model.errors import ConfigError

if TYPE_CHECKING:
    from model.estimator.learned import Learned

Path = str | os.PathLike[str]


class Exports:
    """What `DynamicRnnEstimator` has of `model.export.export`."""

    def _trained(self, checkpoint: Path | None = None) -> Learned:
        raise NotImplementedError

    def export(
        self,
        directory: Path,
        *,
        assets_extra: Mapping[str, Path] | None = None,
        checkpoint_path: Path | None = None,
    ) -> str:
        """Writes bundle, ONNX graphs and `step.pt2` to a new directory and returns it; see `model.export.export`.

        NotFittedError before the first fit; ConfigError without the packages of the extra `onnx`.
        """
        from model.export.export import export

        return export(self._trained(checkpoint_path).bundle, directory, assets_extra=assets_extra)

    def export_savedmodel(
        self,
        export_dir_base: Path,
        serving_input_fn: Callable[[], Any] | None = None,
        default_output_alternative_key: str | None = None,
        assets_extra: Mapping[str, Path] | None = None,
        as_text: bool = False,
        checkpoint_path: Path | None = None,
        graph_rewrite_specs: Any = None,
        strip_default_attrs: bool = False,
    ) -> str:
        """`export` to a directory below `export_dir_base` that is named by the time; returns it.

        The graphs' inputs and outputs, states included, are those in `signature.json`. `serving_input_fn`,
        `default_output_alternative_key`, `graph_rewrite_specs` and `strip_default_attrs`, which chose them in the
        original, are taken and have no effect.
        """
        from model.export.export import export_below

        if as_text:
            raise ConfigError("as_text must be False: ONNX graphs are binary; signature.json is the text beside them")
        return export_below(export_dir_base, self._trained(checkpoint_path).bundle, assets_extra)
