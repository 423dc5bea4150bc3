"""FLOPs that `parallax compare` counts, against closed forms."""

from types import SimpleNamespace

import numpy as np

from common import params
from common.backend import load
from common.config import GPTConfig
from common.variants import MixtureOfExperts
from reports.compare import speed

CONFIG = GPTConfig(31, 16, 12, 2, 3, ff_dim=20, feed_forward=(MixtureOfExperts(4, 2),))


class Played:
    """What a worker answers, in this process; `more` is added to what it counts."""

    def __init__(self, wing, more=0):
        self.wing, self.more, self.model = wing, more, None

    def ask(self, what, name, *asked):
        if what == "build":
            self.model = load(self.wing).build(CONFIG, params.initialise(CONFIG, 0), asked[-1])
        return self.model.matmul_flops(*asked) + self.more if what == "matmul_flops" else None


def test_wings_that_multiply_by_all_experts_or_by_the_chosen_ones_both_count_right():
    ids = np.zeros((2, 7), np.int32)
    plan = SimpleNamespace(
        config=CONFIG, batches=[(ids, ids)], settings=SimpleNamespace(device="cpu"), threads=None, recipe=None
    )
    found = speed.count_flops(plan, {wing: Played(wing) for wing in ("torch", "jax")})
    assert found["passed"]
    assert found["forward"]["counted"]["jax"] > found["forward"]["counted"]["torch"]
    assert not speed.count_flops(plan, {"torch": Played("torch"), "jax": Played("jax", 2)})["passed"]
