"""Files of results."""

import json
import pathlib
from typing import Any

from dpo_jax import assets


def write_json(path: pathlib.Path, value: Any, **options) -> None:
  """Writes a file whole or not at all; options: of `json.dumps`."""
  with assets.atomic_path(path) as temp:
    temp.write_text(json.dumps(value, **options) + '\n')
