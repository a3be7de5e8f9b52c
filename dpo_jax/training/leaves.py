"""A state's leaves: their names and types, and orbax to write and read them."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging


def named(tree) -> dict[str, Any]:
  """Leaves under their paths, such as ".params['embed']"."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def described(leaves: Mapping[str, Any]) -> dict[str, str]:
  """name -> 'float32[2,3]'; a key's type names its generator."""
  return {
    name: f'{x.dtype}[{",".join(map(str, x.shape))}]'
    for name, x in leaves.items()
  }


def check_same(
  where: pathlib.Path, there: Mapping[str, str], here: Mapping[str, str]
) -> None:
  """ValueError for descriptions that differ, with the first ten of them."""
  lines = [
    f'{name}: {there.get(name, "nothing")} there, '
    f'{here.get(name, "nothing")} here'
    for name in sorted({**there, **here})
    if there.get(name) != here.get(name)
  ]
  if lines:
    more = f'\n  and {len(lines) - 10} more' if len(lines) > 10 else ''
    shown = '\n  '.join(lines[:10])
    raise ValueError(
      f'{str(where)!r} holds the state of another model, optimizer or method:'
      f'\n  {shown}{more}'
    )


def nbytes(leaves: Mapping[str, Any]) -> int:
  return sum(x.nbytes for x in leaves.values())


def generators(leaves: Mapping[str, Any]) -> dict[str, str]:
  """name -> generator of the leaves that are typed keys."""
  return {
    name: str(jax.random.key_impl(x))
    for name, x in leaves.items()
    if _is_key(x)
  }


class Store:
  """Writes leaves in the background and reads them, by orbax.

  `finish(folder)` is called when all is written, before the folder, until then
  under a temporary name, gets its own.

  Nothing is compressed: of parameters and moments in float32 zstd saves 8 % of
  the bytes, for 1.5 to 4 CPU seconds a GB. OCDBT or not, Zarr 2 or 3: no
  difference that could be measured.
  """

  def __init__(self, finish: Callable[[pathlib.Path], None]):
    import orbax.checkpoint as ocp  # Takes 0.4 CPU seconds.

    class Handler(ocp.BasePyTreeCheckpointHandler):
      def finalize(self, directory):
        super().finalize(directory)
        finish(pathlib.Path(directory))

    logging.get_absl_logger().addFilter(_is_news)
    handler = Handler(use_compression=False)
    self._ocp = ocp
    # Where a thread makes the folder and fails, others wait for it for minutes.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    self._checkpointer = ocp.AsyncCheckpointer(
      ocp.PyTreeCheckpointHandler(handler_impl=handler), async_options=options
    )

  def save(self, folder: pathlib.Path, leaves: Mapping[str, Any]) -> None:
    """Replaces the folder; returns when the leaves may be donated."""
    # orbax refuses arrays of size zero.
    data = {name: _data(x) for name, x in leaves.items() if x.size}
    args = self._ocp.args.PyTreeSave(data)
    self._checkpointer.save(folder, args=args, force=True)

  def wait(self) -> None:
    """Until all is written; raises what went wrong, once."""
    self._checkpointer.wait_until_finished()

  def close(self) -> None:
    self._checkpointer.close()

  def restore(
    self,
    folder: pathlib.Path,
    like: Mapping[str, Any],
    generators: Mapping[str, str],
  ) -> dict[str, Any]:
    """The leaves of `like`, those of the folder or some, with its shardings.

    NumPy arrays where it has none.
    """
    written = {name: x for name, x in like.items() if x.size}
    args = self._ocp.args.PyTreeRestore(
      dict.fromkeys(written, 0),
      restore_args={k: self._restore_args(x) for k, x in written.items()},
      partial_restore=True,
    )
    leaves = self._checkpointer.restore(folder, args=args)
    for name in like.keys() - written.keys():
      leaves[name] = _empty(like[name])
    for name in generators.keys() & like.keys():
      impl = generators[name]
      leaves[name] = jax.random.wrap_key_data(leaves[name], impl=impl)
    return leaves

  def _restore_args(self, x):
    sharding = getattr(x, 'sharding', None)
    if sharding is None:
      return self._ocp.RestoreArgs(restore_type=np.ndarray)
    return self._ocp.ArrayRestoreArgs(sharding=sharding)


def _is_key(x) -> bool:
  return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x):
  return jax.random.key_data(x) if _is_key(x) else x


def _empty(x):
  data = jax.eval_shape(_data, x)
  sharding = getattr(x, 'sharding', None)
  empty = np.empty(data.shape, data.dtype)
  return empty if sharding is None else jax.device_put(empty, sharding)


def _is_news(record) -> bool:
  """Not one of orbax's forty lines a save; its errors are raised as well."""
  return record.levelname == 'WARNING' or '/orbax/' not in record.pathname
