"""Programs whose memory, FLOPs and collectives are known by construction."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from dpo_jax.training import compiled, sharding

Collective = compiled.Collective


def _over_eight(fn, shape, out=('fsdp',)):
  """`fn` of each device's shard of f32[8 * shape[0], ...], compiled."""
  mesh = sharding.make_mesh(data=2, fsdp=4)
  rows, out = PartitionSpec('fsdp'), PartitionSpec(*out)
  whole = jax.ShapeDtypeStruct((4 * shape[0], *shape[1:]), jnp.float32)
  spread = jax.shard_map(
    fn, mesh=mesh, in_specs=rows, out_specs=out, check_vma=False
  )
  return jax.jit(spread).lower(whole).compile()


CASES = {
  'all-gather': (
    lambda x: jax.lax.all_gather(x, 'fsdp', tiled=True).sum(0)[None] * x,
    [('all-gather', 4 * 6 * 16 * 4)],
  ),
  'all-reduce': (
    lambda x: jax.lax.psum(x, 'fsdp'),
    [('all-reduce', 6 * 16 * 4)],
  ),
  'all-to-all': (
    lambda x: jax.lax.all_to_all(x, 'fsdp', 1, 0, tiled=True),
    [('all-to-all', 6 * 16 * 4)],
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_collectives_are_those_of_the_program(name):
  fn, expected = CASES[name]
  found = compiled.collectives(_over_eight(fn, (6, 16)))
  assert [(c.kind, c.bytes) for c in found] == expected
  assert all(c[2:] == (4, False, 1) for c in found)


def test_loops_multiply():
  def loops(x):
    def outer(x, _):
      def inner(x, _):
        return jnp.tanh(jax.lax.ppermute(x, 'fsdp', [(0, 1), (1, 0)])), None

      x, _ = jax.lax.scan(inner, x, length=5)
      return jax.lax.psum(jnp.sin(x), 'data'), None

    return jax.lax.psum(jax.lax.scan(outer, x, length=3)[0], ('data', 'fsdp'))

  found = set(compiled.collectives(_over_eight(loops, (2, 3), out=())))
  assert found == {
    Collective('collective-permute', 24, 4, True, 15),
    Collective('all-reduce', 24, 2, True, 3),
    Collective('all-reduce', 24, 8, False, 1),
  }


# A TPU program: an all-gather that is split over several fusions, a
# reduce-scatter made of an all-reduce, and a loop that counts to a constant.
TPU = """\
HloModule step, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[]{:T(128)} parameter(0)
  %b = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%a, %b)
}

%all-reduce-scatter.1 (x: f32[64,8]) -> f32[8,8] {
  %x = f32[64,8]{1,0:T(8,128)S(1)} parameter(0)
  %ar = f32[64,8]{1,0} all-reduce(%x), replica_groups={}, to_apply=%add
  %at = u32[] partition-id()
  ROOT %mine = f32[8,8]{1,0:T(8,128)} dynamic-slice(%ar, %at)
}

%part.1 (p: bf16[1,8]) -> bf16[8,8] {
  %p = bf16[1,8]{1,0} parameter(0)
  ROOT %ag = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%p), GROUPS
}

%part.2 (p: bf16[1,8]) -> bf16[8,8] {
  %p.1 = bf16[1,8]{1,0} parameter(0)
  ROOT %ag.1 = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%p.1), GROUPS
}

%body (s: (s32[], f32[64,8])) -> (s32[], f32[64,8]) {
  %s = (s32[]{:T(128)}, f32[64,8]{1,0:T(8,128)}) parameter(0)
  %f1 = bf16[8,8]{1,0} fusion(%s), kind=kCustom, calls=%part.1
  %f2 = bf16[8,8]{1,0} fusion(%f1), kind=kCustom, calls=%part.2
  %scatter = f32[8,8]{1,0} fusion(%f2), calls=%all-reduce-scatter.1
  ROOT %t = (s32[]{:T(128)}, f32[64,8]{1,0:T(8,128)}) tuple(%s, %scatter)
}

%below (s: (s32[], f32[64,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(7)
  %s.1 = (s32[]{:T(128)}, f32[64,8]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: (s32[], f32[64,8])) -> (s32[], f32[64,8]) {
  %x.1 = (s32[]{:T(128)}, f32[64,8]{1,0:T(8,128)}) parameter(0)
  %start = (f32[2,8]{1,0}, f32[8,8]{1,0}) all-gather-start(%x.1), HALVES
  %done = f32[8,8]{1,0} all-gather-done(%start)
  %both = (f32[]{:T(128)}, /*index=1*/f32[3]{0:T(128)}) all-reduce(%x.1), NAMED
  ROOT %loop = (s32[], f32[64,8]) while(%x.1), condition=%below, body=%body
}
"""
for name, value in dict(
  GROUPS='replica_groups=[1,8]<=[8], frontend_attributes={chain_id="3"}',
  HALVES='replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}',
  NAMED="replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add",
).items():
  TPU = TPU.replace(name, value)


def test_what_a_tpu_compiler_writes():
  assert compiled.collectives(TPU) == [
    Collective('all-gather', 8 * 8 * 4, 4, False, 1),
    Collective('all-reduce', 16, 4, False, 1),
    Collective('all-gather', 8 * 8 * 2, 8, True, 7),
    Collective('reduce-scatter', 8 * 8 * 4, 8, True, 7),
  ]


def test_loops_that_do_not_say_how_often():
  text = TPU.replace('direction=LT', 'direction=NE')
  found = compiled.collectives(text)
  assert [c.trips for c in found if c.in_loop] == [None, None]


def _flops(fn, *shapes):
  like = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return compiled.flops(jax.jit(fn).trace(*like))


def test_flops_are_of_products_as_often_as_they_run():
  once = 2 * 4 * 5 * 5
  assert _flops(jnp.matmul, (4, 5), (5, 5)) == once

  def scanned(x, w):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=3)[0]

  assert _flops(scanned, (4, 5), (5, 5)) == 3 * once

  def either(x, w):
    return jax.lax.cond(x[0, 0] > 0, jnp.matmul, scanned, x, w)

  assert _flops(either, (4, 5), (5, 5)) == 3 * once
  assert _flops(jnp.matmul, (7, 4, 5), (7, 5, 2)) == 7 * 2 * 4 * 5 * 2


def test_flops_of_gradients_with_what_remat_repeats():
  def loss(w, x):
    return jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w))

  once = 2 * 4 * 5 * 5
  # Both products, and their gradients, without that of x.
  assert _flops(jax.grad(loss), (5, 5), (4, 5)) == (2 + 3) * once
  again = _flops(jax.grad(jax.checkpoint(loss)), (5, 5), (4, 5))
  assert again == (2 + 2 + 3) * once


def test_flops_are_of_one_device():
  mesh = sharding.make_mesh(data=8)
  rows = PartitionSpec('data')
  product = jax.shard_map(
    jnp.matmul, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows
  )
  assert _flops(product, (16, 5), (5, 3)) == 2 * 2 * 5 * 3


def test_memory_of_a_donated_argument():
  x = jax.ShapeDtypeStruct((1024,), jnp.float32)
  step = jax.jit(lambda x, y: (x + y, y.sum()), donate_argnums=0)
  found = compiled.memory(step.lower(x, x).compile())
  assert found.arguments == 2 * 4096
  assert found.aliased == 4096
  assert found.outputs - found.aliased < 128
  assert found.total >= 2 * 4096
  assert found.total == sum(found[:3]) + found.program - found.aliased
