"""An output directory belongs to one prediction: what is written into it first says of which.

Knows no Ray, no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from model.errors import ConfigError
from model.storage import exists, join, list_names, make_directory, read_bytes, write_bytes
from model.tables.slices import Footer

SOURCE = "_SOURCE"  # hidden from readers of Parquet
Claim = dict[str, Any]  # what decides about the output, in words that a message can use


def digest_of(footers: Mapping[str, Footer]) -> str:
    """A digest of files' names and contents, as far as their footers tell."""
    text = json.dumps(sorted((file, footer.digest) for file, footer in footers.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def check_output(directory: str, claim_output: Claim) -> None:
    """ConfigError where `directory` is another prediction's, or holds Parquet files that are nobody's."""
    where = join(directory, SOURCE)
    if not exists(where):
        if any(name.endswith(".parquet") and not name.startswith((".", "_")) for name in list_names(directory)):
            raise ConfigError(f"{directory} holds Parquet files that no prediction wrote; name another directory")
        return
    there = _claim_in(read_bytes(where))
    other = [name for name in claim_output if there.get(name, claim_output) != claim_output[name]]
    if other:
        raise ConfigError(
            f"{directory} holds predictions or states made with another {', another '.join(other)}; remove it or name "
            f"another directory"
        )


def _claim_in(content: bytes) -> Claim:
    try:
        claim_output = json.loads(content)
    except ValueError:
        claim_output = None
    return claim_output if isinstance(claim_output, dict) else {}


def claim_output(directory: str, source: Claim) -> None:
    """Makes `directory` the output of the prediction that `source` describes."""
    make_directory(directory)
    write_bytes(join(directory, SOURCE), (json.dumps(source, indent=1, ensure_ascii=False) + "\n").encode())
