"""Representations: how ids become network input, declared as plain data. Knows no files, no torch, no Ray."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, field_validator

from model.columns.sources import Bucketized, Categorical, Numeric
from model.settings import Settings

Combiner = Literal["mean", "sum", "sqrtn"]


class OneHot(Settings):
    """Counts of each id a step: several values a step give a multi-hot vector, nothing gives zeros.

    Weighted ids count by their weights.
    """

    type: Literal["one_hot"] = "one_hot"
    source: Categorical

    @property
    def sort_key(self) -> tuple[str, ...]:
        return ("OneHot", *self.source.sort_key)


class Embedding(Settings):
    """A trained vector per id; several values a step are combined, no valid value gives zeros.

    Weighted ids: mean = Σ w·e / Σ w, sqrtn = Σ w·e / √Σ w², both over the ids with w > 0; sum = Σ w·e over all.
    """

    type: Literal["embedding"] = "embedding"
    source: Categorical
    dimension: int = Field(ge=1, description="width of the vector")
    combiner: Combiner = Field("mean", description="how several values a step are combined")
    max_norm: float | None = Field(None, gt=0, description="vectors with a larger L2 norm are scaled down when read")
    trainable: bool = Field(True, description="false keeps the vectors as they are")
    table: str | None = Field(None, min_length=1, description="columns that name the same table share its vectors")
    pretrained: str | None = Field(
        None,
        description="path of a .npy, .npz or .safetensors file with the first vectors, one row an id; every worker "
        "reads it when training begins, the bundle holds its own",
    )
    pretrained_array: str | None = Field(None, description="name of the array in the file, where it holds several")

    @field_validator("pretrained")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        """Workers have other working directories."""
        return path if path is None or "://" in path else os.path.abspath(os.path.expanduser(path))

    def model_post_init(self, _context: object) -> None:
        if self.pretrained is None and self.pretrained_array is not None:
            raise ValueError("pretrained_array names an array of the file `pretrained`, but that is null")

    @property
    def sort_key(self) -> tuple[str, ...]:
        return ("Embedding", *self.source.sort_key)


Column = Annotated[Numeric | Bucketized | OneHot | Embedding, Field(discriminator="type")]
