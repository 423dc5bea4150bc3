"""The judge from outside for sparse attention: the indexer of transformers' DeepSeek-V3.2, and Llama's attention to
what it chooses. They have no such layer on grouped-query heads, so the two are put together here.

Theirs take any of equal index scores (`torch.topk`), so rows are compared whose last chosen score is not next to a tie.
"""

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from common import backend, params
from common.config import Execution, GPTConfig
from common.variants.rotary import Rotary
from common.variants.sparse import Sparse

deepseek = pytest.importorskip("transformers.models.deepseek_v32.modeling_deepseek_v32")
llama = pytest.importorskip("transformers.models.llama.modeling_llama")

BATCH, LENGTH, TOP_K = 2, 83, 7
BOUND = 1e-5  # of float32 sums in another order: 1e-6; a wrong scale, angle or head is off by 1e-2 and more
ENTRY = Sparse(
    2,
    head_dim=10,
    rotary=Rotary(base=500.0),
    out_bias=True,
    top_k=TOP_K,
    index_heads=3,
    index_dim=10,
    index_rotary=Rotary(base=77.0, fraction=0.4),
)
CONFIG = GPTConfig(97, 96, 32, 1, 4, ff_dim=40, norm_eps=1e-6, tie_embeddings=False, attention=ENTRY)
PATH = "model.layers.0.self_attn"
RENAMED = {"wq_b": "index_queries", "wk": "index_keys", "k_norm": "index_norm", "weights_proj": "index_weights"}


class Watched(TorchFunctionMode):
    """Keeps what `topk` is asked of: the index scores, which their indexer does not return."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") == "topk":
            self.scores = args[0]
        return function(*args, **(kwargs or {}))


def randomised(module, generator):
    """Every parameter random, norms and biases too."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1.5 * noise / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.5 * noise + (name == "k_norm.weight"))
    return module.eval()


class Outside:
    """Their indexer and their attention, on the same input."""

    def __init__(self):
        small = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 128}
        indexer = deepseek.DeepseekV32Config(
            **small,
            num_key_value_heads=4,
            q_lora_rank=32,
            qk_rope_head_dim=4,
            index_n_heads=3,
            index_head_dim=10,
            index_topk=TOP_K,
            rope_parameters={"rope_type": "default", "rope_theta": 77.0},
        )
        attention = llama.LlamaConfig(
            **small,
            num_key_value_heads=2,
            head_dim=10,
            attention_bias=True,
            attn_implementation="eager",
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
        generator = torch.Generator().manual_seed(8)
        self.indexer = randomised(deepseek.DeepseekV32Indexer(indexer, 0), generator)
        self.attention = randomised(llama.LlamaAttention(attention, 0), generator)
        self.index_angles = deepseek.DeepseekV32RotaryEmbedding(indexer)
        self.angles = llama.LlamaRotaryEmbedding(attention)

    def weights(self):
        """Their parameters under our names."""
        found = {f"{PATH}.{name}": p for name, p in self.attention.named_parameters()}
        for name, p in self.indexer.named_parameters():
            module, _, leaf = name.rpartition(".")
            found[f"{PATH}.{RENAMED[module]}.{leaf}"] = p
        return {name: p.detach().numpy() for name, p in found.items()}

    def __call__(self, x):
        """(index scores, which keys are chosen, the layer's output) of float32 [B, T, E]."""
        positions = torch.arange(x.shape[1])[None]
        visible = positions[..., None, :] <= positions[..., None]
        with torch.no_grad(), Watched() as watched:
            # queries come from the layer's input, as if it were the latent that theirs come from
            slots = self.indexer(x, x, self.index_angles(x, positions), visible, positions)
            chosen = torch.zeros(*x.shape[:2], x.shape[1], dtype=torch.bool).scatter(-1, slots.long(), True) & visible
            mask = torch.zeros(chosen.shape).masked_fill(~chosen, torch.finfo(torch.float32).min)[:, None]
            output, _ = self.attention(x, position_embeddings=self.angles(x, positions), attention_mask=mask)
        return watched.scores.numpy(), chosen.numpy(), output.numpy()


@pytest.fixture(scope="module")
def outside():
    return Outside()


def clear_rows(scores):
    """Where the last chosen score and the next one are apart by more than float32 can move them, bool [B, T]."""
    ordered = -np.sort(-scores, -1)
    visible = np.isfinite(scores).sum(-1)
    with np.errstate(invalid="ignore"):  # of hidden keys, -inf less -inf
        gap = ordered[..., TOP_K - 1] - ordered[..., TOP_K]
    return (visible <= TOP_K) | (gap > 1e-4 * np.abs(scores[np.isfinite(scores)]).max())


def test_every_parameter_is_mapped(outside):
    table = params.table(CONFIG)
    own = {name: p.shape for name, p in table.items() if name.startswith(f"{PATH}.")}
    assert {name: value.shape for name, value in outside.weights().items()} == own
    assert all(value.std() > 0.1 for value in outside.weights().values())


@pytest.mark.parametrize(("name", "dtype"), [("numpy", "float64"), ("torch", "float32"), ("jax", "float32")])
def test_scores_choices_and_output(outside, name, dtype):
    """On what our own layer reads, so that everything before it is out of the comparison; positions up to 82."""
    weights = {**params.randomise(CONFIG, 3), **outside.weights()}
    ids = np.random.default_rng(9).integers(0, CONFIG.vocab_size, (BATCH, LENGTH))
    taps = backend.load(name).build(CONFIG, weights, Execution(dtype=dtype)).forward(ids, taps=("*",)).taps
    x = torch.from_numpy(taps["model.layers.0.input_layernorm"].astype(np.float32))
    scores, chosen, output = outside(x)
    got = {what: taps[f"{PATH}.{what}"] for what in ("index_scores", "chosen", "output")}
    seen, clear = np.isfinite(scores), clear_rows(scores)
    np.testing.assert_array_equal(np.isfinite(got["index_scores"]), seen)
    assert np.abs(got["index_scores"][seen] - scores[seen]).max() < BOUND * np.abs(scores[seen]).max()
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(np.asarray(got["chosen"], bool)[clear], chosen[clear])
    assert np.abs(got["output"][clear] - output[clear]).max() < BOUND * np.abs(output).max()
