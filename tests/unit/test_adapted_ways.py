"""Which ways to run are refused where an adapter changes a matrix, as the kinds of attention say it of themselves."""

import pytest

from common import adapters
from common.adapters import Adapter
from common.config import Execution, GPTConfig
from common.errors import UserError
from common.variants import GroupedQuery, Latent, MultiHead

REFUSED = [
    (MultiHead(), "*.q_proj", {"attention": "module"}),
    (MultiHead(), "*.o_proj", {"attention": "module_weights"}),
    (GroupedQuery(1), "*.k_proj", {"projections": "joined"}),
    (MultiHead(), "*.v_proj", {"projections": "einsum"}),
    (Latent(rank=6), "*.k_up_proj", {"latent": "absorbed"}),
    (Latent(rank=6), "*.v_up_proj", {"latent": "absorbed"}),
]
TAKEN = [
    (MultiHead(), "*.q_proj", {"attention": "blockwise"}),
    (MultiHead(), "*.o_proj", {"projections": "joined"}),
    (MultiHead(), "*.mlp.*_proj", {"attention": "module", "projections": "joined"}),
    (MultiHead(), "*.mlp.up_proj", {"latent": "absorbed"}),
    (Latent(rank=6, query_rank=5), "*.q_up_proj", {"latent": "absorbed"}),
    (Latent(rank=6), "*.kv_down_proj", {"latent": "absorbed"}),
    (Latent(rank=6), "*.v_up_proj", {"decode": "streamed"}),
    (Latent(rank=6), "*.k_up_proj", {"latent": "expanded"}),
]


def config(attention, target):
    adapted = Adapter(targets=(target,), rank=2)
    return GPTConfig(19, 16, 8, 2, 2, ff_dim=12, attention=(attention,), adapters=adapted)


@pytest.mark.parametrize(("attention", "target", "fields"), REFUSED)
def test_a_way_that_multiplies_by_the_matrix_itself_is_refused(attention, target, fields):
    ((field, chosen),) = fields.items()
    with pytest.raises(UserError, match=rf"changes model\.layers\.0\.\S+, whose matrix {field}='{chosen}' multiplies"):
        adapters.check(config(attention, target), Execution(**fields))


@pytest.mark.parametrize(("attention", "target", "fields"), TAKEN)
def test_ways_that_see_what_an_adapter_adds_are_taken(attention, target, fields):
    adapters.check(config(attention, target), Execution(**fields))
