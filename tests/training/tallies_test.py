"""Counts over rows that devices hold; of real processes: processes_test.py."""

from dpo_jax.training import processes, sharding, tallies
from tests import forests


def test_sums_over_devices_are_those_of_the_host(monkeypatch):
  records = forests.random_records(3, num=24)
  options = dict(num_batches=2, rows=4, seed=0, batch_size=8)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)

  def flops(batch):
    # More bits than a float32, and than an int32, has.
    return float(((batch.layout.segment_RxL > 0).sum() << 40) + 3)

  alone = tallies.make_count(mesh, flops)
  monkeypatch.setattr(processes, 'many', lambda: True)
  count = tallies.make_count(mesh, flops)
  for batch, stopping in zip(forests.pack(records, **options), (False, True)):
    here, there = alone(batch, stopping)(), count(batch, stopping)()
    # Each row has a 3 of its own.
    assert there == here._replace(flops=here.flops + 9)
    assert here.tokens == (batch.layout.segment_RxL > 0).sum()
    assert here.examples == 8 and here.stopping == stopping
