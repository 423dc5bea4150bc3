"""A user's broken port is found: a copy of a wing with one bug, and the tensor and the mistake that are named."""

import pytest

HEADS, NORM, GPT = "attention/multi_head.py", "layers.py", "models/gpt.py"
PROJECT = 'q_BHTD, k_BHSD, v_BHSD = map(taps, "qkv", self.project(linears, x_BTE, self.num_heads))'
KERNEL, LAYER = "attention/kernels.py", "model.layers.0."
ATTENTION = f"{LAYER}self_attn."

# what: file, the line's part, the bug, the tensor that parts first, words of the hint
TORCH = {
    "scale by d_model": (
        KERNEL,
        "/ math.sqrt(q_BHTD.shape[-1])",
        "/ math.sqrt(q_BHTD.shape[-1] * q_BHTD.shape[1])",
        f"{ATTENTION}scores",
        "divided by sqrt(d_model), not by sqrt(D)",
    ),
    "scale off by one percent": (
        KERNEL,
        "/ math.sqrt(q_BHTD.shape[-1])",
        "* 1.01 / math.sqrt(q_BHTD.shape[-1])",
        f"{ATTENTION}scores",
        "1.01 times the right value",
    ),
    "heads split without transpose": (
        HEADS,
        "x_BTE.view(batch, length, num_heads, embed // num_heads).transpose(1, 2)",
        "x_BTE.reshape(batch, num_heads, length, embed // num_heads)",
        f"{ATTENTION}q",
        "the split into heads lacks its transpose",
    ),
    "heads joined without transpose": (
        HEADS,
        "x_BHTD.transpose(1, 2).reshape(",
        "x_BHTD.reshape(",
        f"{ATTENTION}output",
        "joined without their transpose",
    ),
    "mask off by one": (
        "masks.py",
        "(key <= query)",
        "(key <= query + 1)",
        f"{ATTENTION}scores",
        "sees one position too many",
    ),
    "diagonal hidden": ("masks.py", "(key <= query)", "(key < query)", f"{ATTENTION}scores", "its own position"),
    "finite mask": (KERNEL, "-torch.inf, 0.0", "-1e4, 0.0", f"{ATTENTION}scores", "hidden keys get -10000, not -inf"),
    "norm eps": (
        NORM,
        "variance + self.eps",
        "variance + 1e-6",
        f"{LAYER}input_layernorm",
        "eps is about 1.0e-06, not 1.0e-04",
    ),
    "norm ddof": (
        NORM,
        "centred.square().mean(-1, keepdim=True)",
        "wide.var(-1, keepdim=True)",
        f"{LAYER}input_layernorm",
        "ddof 1",
    ),
    "norm bias missing": (
        NORM,
        " * self.weight + self.bias)",
        " * self.weight)",
        f"{LAYER}input_layernorm",
        "its bias is",
    ),
    "exact gelu": (
        NORM,
        'F.gelu(x, approximate="tanh")',
        "F.gelu(x)",
        f"{LAYER}mlp.hidden",
        "the activation is gelu, not gelu_tanh",
    ),
    "linear bias missing": (
        NORM,
        "F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))",
        "F.linear(x, weight.to(x.dtype))",
        f"{ATTENTION}q",
        "its bias is missing",
    ),
    "k and v swapped": (
        HEADS,
        "linears = self.q_proj, self.k_proj, self.v_proj",
        "linears = self.q_proj, self.v_proj, self.v_proj",
        f"{ATTENTION}k",
        "it is v: the projections are swapped",
    ),
    "residual after the norm": (
        GPT,
        "x_BTE = x_BTE + dropout(branch_BTE, self.rate, dropout_key, 1)",
        "x_BTE = normed_BTE + dropout(branch_BTE, self.rate, dropout_key, 1)",
        f"{LAYER}post_attention_layernorm",
        "the residual is taken after the norm",
    ),
    "second residual missing": (
        GPT,
        "x_BTE = x_BTE + dropout(branch_BTE, self.rate, dropout_key, 2)",
        "x_BTE = dropout(branch_BTE, self.rate, dropout_key, 2)",
        f"{LAYER}output",
        "the residual stream is not added",
    ),
    "positions from 1": (
        GPT,
        "positions_BT.clamp(min=0)",
        "positions_BT.clamp(min=0) + 1",
        "model.embed",
        "positions start at 1",
    ),
    "softmax over the queries": (
        KERNEL,
        "torch.softmax(scores_BHTS, -1)",
        "torch.softmax(scores_BHTS.nan_to_num(neginf=-1e300), -2)",
        f"{ATTENTION}weights",
        "over the queries, not over the keys",
    ),
    "softmax in float32": (
        KERNEL,
        "torch.softmax(scores_BHTS, -1)",
        "torch.softmax(scores_BHTS.float(), -1)",
        f"{ATTENTION}weights",
        "casts to float32",
    ),
    "final norm skipped": (
        GPT,
        'taps("norm", self.norm(x_BTE))',
        'taps("norm", x_BTE)',
        "model.norm",
        "the norm is skipped",
    ),
    "final norm skipped behind the tap": (
        GPT,
        "hidden_BTE, caches = self.model(",
        "_, caches = self.model(ids_BT, positions_BT, caches, dropout_key, taps.under('model'))\n"
        "        hook = self.model.norm.register_forward_hook(lambda m, x, y: setattr(self, 'raw', x[0]))\n"
        "        _ = self.model(ids_BT, positions_BT)\n"
        "        hook.remove()\n"
        "        hidden_BTE = self.raw\n"
        "        _, caches = self.model(",
        "logits",
        "the final norm is skipped",
    ),
    "one head reads another": (
        HEADS,
        PROJECT,
        "q_BHTD, k_BHSD, v_BHSD = self.project(linears, x_BTE, self.num_heads)\n"
        '        q_BHTD, k_BHSD, v_BHSD = map(taps, "qkv", (q_BHTD[:, [1, 0, 2]], k_BHSD, v_BHSD))',
        f"{ATTENTION}q",
        "with h in another order: 1, 0, 2",
    ),
    "wrong in one head": (
        HEADS,
        PROJECT,
        "q_BHTD, k_BHSD, v_BHSD = (x.clone() for x in self.project(linears, x_BTE, self.num_heads))\n"
        "        v_BHSD[:, 2, :, 1::2] *= -1\n"
        '        q_BHTD, k_BHSD, v_BHSD = map(taps, "qkv", (q_BHTD, k_BHSD, v_BHSD))',
        f"{ATTENTION}v",
        "wrong only at h 2, d odd",
    ),
}


@pytest.mark.parametrize("what", TORCH)
def test_a_bug_in_a_copy_of_the_torch_wing(what, port, diverge):
    file, find, replace, tensor, words = TORCH[what]
    report = diverge(port("torch", file, find, replace), "torch")
    assert report.first.name == tensor
    assert report.first.off == ["A"], "the oracle tells which side is off"
    assert words in " ".join(report.diagnosis.hints), report.diagnosis.hints
    before = [row for row in report.rows[: report.rows.index(report.first)] if row.stage == "forward"]
    assert all(row.gap == 0 for row in before), "one program but for the bug: equal to the bit before it"


JAX = {
    "scale left out": (
        KERNEL,
        "reduce) / math.sqrt(q_BHTD.shape[-1])",
        "reduce)",
        f"{ATTENTION}scores",
        "they are not divided by sqrt(D)",
    ),
    "norm not centred": (
        NORM,
        "centred = wide - wide.mean(-1, keepdims=True)",
        "centred = wide",
        f"{LAYER}input_layernorm",
        "as an RMS norm",
    ),
    "v in place of q": (
        HEADS,
        "linears = self.q_proj, self.k_proj, self.v_proj",
        "linears = self.v_proj, self.k_proj, self.v_proj",
        f"{ATTENTION}q",
        "it is v: the projections are swapped",
    ),
}


@pytest.mark.parametrize("what", JAX)
def test_a_bug_in_a_copy_of_the_jax_wing(what, port, diverge):
    """Named whichever side it stands on; the other side is a framework of its own."""
    file, find, replace, tensor, words = JAX[what]
    report = diverge("torch", port("jax", file, find, replace), case="gpt")
    assert report.first.name == tensor
    assert report.first.off == ["B"]
    assert words in " ".join(report.diagnosis.hints), report.diagnosis.hints


def test_an_untied_head_that_is_tied(port, diverge):
    find = "self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight"
    wrong = port("torch", GPT, find, "self.model.embed_tokens.weight")
    report = diverge(wrong, "torch", case="gpt_untied")
    assert report.first.name == "logits"
    assert "the head is tied" in report.diagnosis.hints[0]


def test_padding_that_is_not_masked(port, diverge):
    """Rows of unequal length are padded on the left; the padded places themselves are nobody's business."""
    wrong = port("torch", "masks.py", " & (key >= 0)", "")
    rows = [[3, 1, 4, 1, 5], [9, 2, 6]]
    assert diverge("torch", "numpy", rows=rows).agree
    report = diverge(wrong, "torch", rows=rows)
    assert report.first.name == f"{ATTENTION}scores"
    assert "padding is not masked" in report.diagnosis.hints[0]
    assert diverge(wrong, "torch").agree, "without padding nothing is wrong"


def test_weights_that_are_loaded_transposed(port, diverge):
    """Told before anything is computed: the sides do not hold the same."""
    find, bug = (
        "Parameter(self._own(array))",
        "Parameter(self._own(array.T if 'o_proj.weight' in name else array))",
    )
    wrong = port("torch", "backend.py", find, bug)
    report = diverge(wrong, "torch")
    assert (report.first.stage, report.first.name) == ("weights", "model.layers.0.self_attn.o_proj.weight")
    assert "o and i exchanged" in report.diagnosis.hints[0]


def test_a_bug_is_found_in_float32_too(port, diverge):
    wrong = port("torch", NORM, 'F.gelu(x, approximate="tanh")', "F.gelu(x)")
    report = diverge(wrong, "numpy", dtype="float32")
    assert report.first.name == f"{LAYER}mlp.hidden"
    assert "the activation is gelu, not gelu_tanh" in report.diagnosis.hints[0]


def test_a_second_bug_is_told_beside_the_first(port, diverge):
    """Own errors are told from inherited ones: after the first bug all differs, but only two steps are wrong."""
    folder = port("torch", NORM, 'F.gelu(x, approximate="tanh")', "F.relu(x)")
    source = (folder / GPT).read_text()
    (folder / GPT).write_text(source.replace('taps("norm", self.norm(x_BTE))', 'taps("norm", 2 * self.norm(x_BTE))'))
    report = diverge(folder, "torch")
    off = {row.name for row in report.rows if row.off}
    assert off == {f"model.layers.{i}.mlp.hidden" for i in range(3)} | {"model.norm"}
    assert report.diagnosis.also == "mlp.hidden in layers 1, 2; norm"


GRADIENTS = {
    "variance detached": (
        NORM,
        "variance = centred.square().mean(-1, keepdim=True)",
        "variance = centred.square().mean(-1, keepdim=True).detach()",
        "model.layers.2.mlp.down_proj.bias",
        "model.norm: it differs by itself",
    ),
    "residual detached": (
        GPT,
        "x_BTE = x_BTE + dropout(branch_BTE, self.rate, dropout_key, 2)",
        "x_BTE = x_BTE.detach() + dropout(branch_BTE, self.rate, dropout_key, 2)",
        "model.layers.2.self_attn.o_proj.bias",
        "model.layers.2",
    ),
    "half of the head's gradient": (
        GPT,
        "self.product(hidden_BTE, self.head_weight, None)",
        "self.product(hidden_BTE, self.head_weight.detach(), None)",
        "model.embed_tokens.weight",
        "back to model.embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("what", GRADIENTS)
def test_a_bug_that_only_the_backward_pass_has(what, port, diverge):
    file, find, replace, tensor, words = GRADIENTS[what]
    wrong = port("torch", file, find, replace)
    assert diverge(wrong, "torch").agree, "the forward pass knows nothing of it"
    report = diverge(wrong, "torch", gradients=True)
    assert (report.first.stage, report.first.name) == ("gradient", tensor)
    assert report.diagnosis.judged.startswith("A is off")
    assert words in report.diagnosis.where
    if tensor == "model.embed_tokens.weight":
        assert "the head's share of the tied embedding is missing" in report.diagnosis.hints[0]


LOSSES = {
    "total / count": ("total / positions_1T.shape[1] / len(targets_BT)", "divided by all positions"),
}


@pytest.mark.parametrize("what", LOSSES)
def test_a_wrong_loss(what, port, diverge):
    replace, words = LOSSES[what]
    report = diverge(port("torch", "train.py", f"return {what}", f"return {replace}"), "torch", gradients=True)
    assert report.first.stage == "loss"
    assert words in report.diagnosis.hints[0]
