"""The rules of the house, read from the source: who may import whom, and that the three implementations are twins."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch", "jax", "flax", "optax"}
ORACLE, TORCH, JAX = ROOT / "common" / "oracle", ROOT / "torch_impl", ROOT / "jax_impl"
ALLOWED = {  # arrows point down only
    "common": {"common"},
    "torch_impl": {"common", "torch_impl"},
    "jax_impl": {"common", "jax_impl"},
    "benchmarks": {"common", "benchmarks"},
    "reports": {"common", "benchmarks", "reports"},
}
HOUSE = set(ALLOWED) | {"tests"}

# What stands in one place only, and why. A stale entry fails.
ONE_SIDED_FILES = {
    "jax_impl/programs.py": "NNX modules are split into description and values, and compiled",
    "torch_impl/pth.py": "the file format is PyTorch's own",
    "torch_impl/book.py": "the random numbers are PyTorch's own, in the order of its modules",
    "torch_impl/transformers_gpt2.py": "another library's model, in PyTorch only, to hold others against",
    "torch_impl/tasks.py": "the oracle is not timed",
    "jax_impl/tasks.py": "the oracle is not timed",
    "torch_impl/attention/loop.py": "another implementation of the same function; the oracle has one of each",
    "jax_impl/attention/loop.py": "another implementation of the same function; the oracle has one of each",
    "torch_impl/attention/blockwise.py": "another implementation of the same function; the oracle has one of each",
    "jax_impl/attention/blockwise.py": "another implementation of the same function; the oracle has one of each",
    "torch_impl/attention/framework.py": "the oracle has no framework",
    "torch_impl/attention/compiled.py": "the oracle has no compiler",
    "jax_impl/attention/compiled.py": "the oracle has no compiler",
    "jax_impl/attention/framework.py": "the oracle has no framework",
    "common/oracle/module.py": "NumPy has no module class",
    "common/oracle/gradient.py": "the oracle differentiates by complex steps, the wings automatically",
    "torch_impl/precision.py": "the oracle has one precision",
    "jax_impl/precision.py": "the oracle has one precision",
    "torch_impl/rng.py": "the oracle's is common/rng.py",
    "jax_impl/rng.py": "the oracle's is common/rng.py",
    "torch_impl/flops.py": "the oracle counts nothing",
    "jax_impl/flops.py": "the oracle counts nothing",
    "torch_impl/accounts.py": "the oracle counts nothing",
    "jax_impl/accounts.py": "the oracle counts nothing",
    "torch_impl/layout.py": "the oracle is not spread",
    "jax_impl/layout.py": "the oracle is not spread",
    "torch_impl/placing.py": "the oracle is not spread",
    "jax_impl/placing.py": "the oracle is not spread",
    "jax_impl/plan.py": "PyTorch compiles no program of several devices",
    "jax_impl/hlo.py": "a compiled program is read, and eager execution has none",
    "torch_impl/graphs.py": "JAX compiles whole programs",
    "torch_impl/memory.py": "the oracle counts nothing",
    "jax_impl/memory.py": "the oracle counts nothing",
}
ONE_SIDED_NAMES = {
    "torch_impl/attention/kernels.py:fused_attention": "the oracle has no fast paths",
    "jax_impl/attention/kernels.py:fused_attention": "the oracle has no fast paths",
    "torch_impl/attention/multi_head.py:joined_projections": "the oracle has no fast paths",
    "jax_impl/attention/multi_head.py:joined_projections": "the oracle has no fast paths",
    "torch_impl/attention/multi_head.py:einsum_projections": "the oracle has no fast paths",
    "jax_impl/attention/multi_head.py:einsum_projections": "the oracle has no fast paths",
    "torch_impl/attention/compiled.py:flex_attention": "PyTorch's own",
    "jax_impl/attention/compiled.py:cudnn_attention": "JAX's own",
    "jax_impl/attention/compiled.py:pallas_attention": "JAX's own",
    **{
        f"{wing}_impl/attention/latent.py:absorbed_{what}": "the oracle has no fast paths"
        for wing in ("torch", "jax")
        for what in ("scores", "context")
    },
    **{
        f"{wing}_impl/feed_forward/mixture_of_experts.py:{form}Experts": "the oracle has no fast paths"
        for wing in ("torch", "jax")
        for form in ("Grouped", "Gathered")
    },
    "torch_impl/loss.py:chunked_loss": "the oracle has no fast paths",
    "jax_impl/loss.py:chunked_loss": "the oracle has no fast paths",
    "torch_impl/loss.py:CHUNK": "the oracle has no fast paths",
    "jax_impl/loss.py:CHUNK": "the oracle has no fast paths",
    "torch_impl/lora.py:widened": "the oracle has no fast paths",
    "jax_impl/lora.py:widened": "the oracle has no fast paths",
    "torch_impl/layers.py:formula_gelu_tanh": "the plain one of the oracle and of JAX is the formula",
    "torch_impl/layers.py:formula_gelu": "the plain one of the oracle is the formula, and JAX's own is one",
    "jax_impl/layers.py:own_gelu_tanh": "PyTorch's plain one is its own",
    **{
        f"{wing}_impl/{what}": "the oracle has one form of each"
        for wing in ("torch", "jax")
        for what in ("layers.py:GELUS", "masks.py:StoredMask", "masks.py:no_mask", "masks.py:MASKS")
    },
    "torch_impl/layers.py:streamed_product": "the oracle has no fast paths",
    "torch_impl/layers.py:library_streams": "MKL reads a row's weights with all threads on some processors",
    "jax_impl/layers.py:streamed_product": "the oracle has no fast paths",
    "torch_impl/layers.py:matmul": "the oracle has one precision",
    "jax_impl/layers.py:matmul": "the oracle has one precision",
    "torch_impl/layers.py:wide_product": "XLA widens by itself",
    **{
        f"{wing}_impl/{what}": "the oracle has no framework"
        for wing in ("torch", "jax")
        for what in ("layers.py:FusedLayerNorm", "layers.py:FusedRMSNorm", "optim.py:fused_adamw")
    },
    **{
        f"{wing}_impl/quantise.py:{what}": "the oracle holds what the bits stand for"
        for wing in ("torch", "jax")
        for what in ("QuantisedLinear", "rebase")
    },
    "torch_impl/quantise.py:ForgetfulProduct": "JAX's is jax.checkpoint",
    "jax_impl/quantise.py:Bits": "PyTorch's are buffers",
    "common/oracle/layers.py:sigmoid": "the frameworks bring their own",
    "torch_impl/train.py:clipped_gradients": "JAX compiles whole programs; here a graph ends before the optimizer",
    "torch_impl/generate.py:serve": "the oracle has one precision",
    "torch_impl/generate.py:fill": "the oracle is not timed: nobody continues one cache again and again",
    "torch_impl/generate.py:go_on": "JAX's loop is decode, on the device",
    "jax_impl/generate.py:fill": "the oracle is not timed: nobody continues one cache again and again",
    "torch_impl/generate.py:WHILE_DECODING": "a compiled step is fused by the compiler",
    "jax_impl/generate.py:WHILE_DECODING": "the oracle has no other forms to decode in",
    "jax_impl/generate.py:serve": "the oracle has one precision",
    "torch_impl/generate.py:rounded": "compiled steps need few lengths; JAX's is bucket",
    "common/oracle/attention/kernels.py:softmax": "the frameworks bring their own",
    "jax_impl/stack.py:scan": "PyTorch has no scan, and compiles block by block without one",
    "torch_impl/stack.py:LIMIT": "JAX compiles programs, not modules, and has no limit",
    "torch_impl/stack.py:compile_in_place": "JAX compiles programs, not modules, and has no limit",
    "torch_impl/stack.py:checkpointed": "the oracle keeps nothing for a way back",
    "torch_impl/stack.py:DOTS": "PyTorch names operations; JAX has a policy for these",
    "jax_impl/stack.py:checkpointed": "the oracle keeps nothing for a way back",
    "jax_impl/stack.py:apart": "a scan wants the parameters of all layers in one array",
    "jax_impl/stack.py:together": "a scan wants the parameters of all layers in one array",
    "jax_impl/stack.py:fold": "a scan wants the parameters of all layers in one array",
    "jax_impl/stack.py:unfold": "a scan wants the parameters of all layers in one array",
    "jax_impl/stack.py:FOLDS": "a scan wants the parameters of all layers in one array",
    "jax_impl/stack.py:place": "a scan wants the parameters of all layers in one array",
    "jax_impl/stack.py:repeats": "a scan wants the parameters of all layers in one array",
    "jax_impl/stack.py:LAYER": "a scan wants the parameters of all layers in one array",
    "jax_impl/generate.py:decode": "the loop runs on the device",
    "jax_impl/generate.py:recipe": "what compiled programs depend on",
    "jax_impl/generate.py:bucket": "few static lengths, few compilations",
    **{
        f"jax_impl/kv_cache.py:{what}": "XLA on a CPU would copy all slots for whoever reads them"
        for what in ("put", "scatter", "branched")
    },
    "jax_impl/flops.py:BODIES": "a program is walked, not run",
    "jax_impl/flops.py:UNKNOWN": "a program is walked, not run",
    "jax_impl/flops.py:xla_flops": "a compiler has a figure of its own",
    "torch_impl/layout.py:PARTS": "JAX's rows are cut by a partition",
    "torch_impl/layout.py:Network": "PyTorch's engines hook into modules",
    "jax_impl/layout.py:join": "JAX's processes join before there are devices, PyTorch's where the mesh is made",
    "jax_impl/layout.py:PATIENCE": "PyTorch's collective operations wait for half an hour, JAX's for half a minute",
    **{
        f"torch_impl/placing.py:{what}": "PyTorch's maps are cut one by one, and tensors know where they lie"
        for what in ("cut_maps", "dealt_bits", "Placed", "Heads", "local_of", "whole_of", "part_of", "added", "cuts_of")
    },
    **{
        f"jax_impl/placing.py:{what}": "a compiled program is told where arrays lie"
        for what in ("NOT_GATHERED", "SLOTS", "Places", "spread_of")
    },
    **{
        f"torch_impl/tasks.py:{what}": "tensors are there when their bytes are counted; XLA plans from shapes"
        for what in ("optimised", "dropped", "chosen")
    },
    "torch_impl/memory.py:saved_bytes": "eager autograd keeps tensors, a compiler has a plan",
    "torch_impl/memory.py:live_bytes": "eager execution has live tensors, a compiler has a plan",
    "jax_impl/memory.py:planned_bytes": "eager autograd keeps tensors, a compiler has a plan",
    "jax_impl/memory.py:plan_of": "eager autograd keeps tensors, a compiler has a plan",
    "common/oracle/backend.py:DIFFERENTIABLE": "a complex step for every number",
    "common/oracle/train.py:mean_loss": "complex steps need the loss as a function",
}
FORCED = {  # arguments that one framework needs and another does not
    "self", "execution", "precision", "reduce", "device", "params", "programs", "model", "rebuild", "block", "dtype",
    "decoder", "adam", "clipped", "several", "summed", "term_weight",
}  # fmt: skip


def sources(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def relative(path):
    return str(path.relative_to(ROOT))


def imported(path):
    """Top-level packages that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_down_only(room):
    files = sources(ROOT / room)
    assert files
    for path in files:
        upward = (set(imported(path)) & HOUSE) - ALLOWED[room]
        assert not upward, f"{relative(path)} imports {upward}"


def test_frameworks_stay_in_their_wings():
    for room, own in {"common": set(), "torch_impl": {"torch"}, "jax_impl": FRAMEWORKS - {"torch"}}.items():
        for path in sources(ROOT / room):
            foreign = (set(imported(path)) & FRAMEWORKS) - own
            assert not foreign, f"{relative(path)} imports {foreign}"


def test_the_oracle_is_plain_numpy():
    plain = {"numpy", "math", "typing", "collections", "importlib", "itertools", "common"}
    for path in sources(ORACLE):
        assert set(imported(path)) <= plain, relative(path)


def test_wings_are_loaded_by_name_only():
    """Outside the wings and their tests nobody imports a wing."""
    for room in ("common", "benchmarks", "reports"):
        for path in sources(ROOT / room):
            assert not set(imported(path)) & {"torch_impl", "jax_impl"}, relative(path)


def rooms(folder):
    return {str(path.relative_to(folder)) for path in sources(folder)}


def test_the_three_implementations_have_the_same_files():
    union = rooms(ORACLE) | rooms(TORCH) | rooms(JAX)
    lonely = set()
    for folder in (ORACLE, TORCH, JAX):
        for other in (ORACLE, TORCH, JAX):
            lonely |= {relative(folder / name) for name in rooms(folder) - rooms(other)}
    assert lonely == set(ONE_SIDED_FILES), lonely ^ set(ONE_SIDED_FILES)
    assert {"attention/multi_head.py", "models/gpt.py", "kv_cache.py"} <= union


def definitions(path):
    """Public definitions in order: name -> (arguments, step comments, docstring, kind)."""
    text = path.read_text(encoding="utf-8")
    lines, found = text.splitlines(), {}

    def visit(body, prefix):
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                name = {"__call__": "forward"}.get(node.name, node.name)
                if name.startswith("_") and name != "__init__":
                    continue
                arguments = [] if isinstance(node, ast.ClassDef) else [a.arg for a in node.args.args]
                own = lines[node.lineno - 1 : node.end_lineno]
                steps = re.findall(r"# (\[[^\n]*)", "\n".join(own)) if isinstance(node, ast.FunctionDef) else []
                found[prefix + name] = (arguments, steps, ast.get_docstring(node), type(node).__name__)
                if isinstance(node, ast.ClassDef):
                    visit(node.body, f"{prefix}{name}.")
            elif isinstance(node, ast.Assign) and not prefix:
                for target in node.targets:
                    if isinstance(target, ast.Name) and target.id.isupper():
                        found[target.id] = ([], [], "constant", "Assign")

    visit(ast.parse(text).body, "")
    return found


def shared_files():
    return sorted(rooms(TORCH) & rooms(JAX))


def twins(name):
    """The definitions of all implementations that have this file, without what is one-sided, by folder."""
    out = {}
    for folder in (ORACLE, TORCH, JAX):
        if (folder / name).exists():
            listed = {key.split(":")[1] for key in ONE_SIDED_NAMES if key.startswith(f"{relative(folder / name)}:")}
            own = definitions(folder / name)
            assert listed <= set(own), f"stale entry in ONE_SIDED_NAMES: {listed - set(own)}"
            out[folder.name] = {key: value for key, value in own.items() if key.split(".")[0] not in listed}
    return out


@pytest.mark.parametrize("name", [name for name in shared_files() if name not in ("backend.py", "rng.py")])
def test_twins_have_the_same_names_signatures_and_steps(name):
    found = twins(name)
    first, *others = found
    for other in others:
        assert list(found[first]) == list(found[other]), f"{name}: {first} and {other}"
        for key in found[first]:
            one, two = found[first][key], found[other][key]
            assert [a for a in one[0] if a not in FORCED] == [a for a in two[0] if a not in FORCED], f"{name}:{key}"
            steps = [[re.sub(r"\s+", " ", s) for item in side[1] for s in item.split("  ")] for side in (one, two)]
            assert steps[0] == steps[1], f"{name}:{key}"


def test_the_wings_random_numbers_have_the_same_names():
    both = [definitions(folder / "rng.py") for folder in (TORCH, JAX)]
    common = {"bits", "uniform", "bernoulli", "gumbel"}
    assert [common <= set(own) for own in both] == [True, True]
    import jax_impl.rng
    import torch_impl.rng

    for name in (*common, "key", "address", "fold_in", "split"):
        assert callable(getattr(jax_impl.rng, name))
        assert callable(getattr(torch_impl.rng, name))


def test_backends_offer_the_same():
    """Classes are named after their framework; their public methods are those of the door, in the same order."""
    own = {}
    for folder in (TORCH, JAX):
        names = [key for key in definitions(folder / "backend.py") if "." in key]
        own[folder.name] = [re.sub("^(Torch|Jax)", "", name) for name in names]
    one_sided = {
        "Backend.read_state_dict",
        "Backend.write_state_dict",
        "Backend.keep",
        "Backend.book_run",
        "Model.scope",
        "Shared.__init__",  # by how many layers JAX folds
    }
    lists = [[name for name in names if name not in one_sided] for names in own.values()]
    assert lists[0] == lists[1]


@pytest.mark.parametrize("folder", [ORACLE, TORCH, JAX, ROOT / "common"], ids=relative)
def test_public_definitions_are_documented(folder):
    """Functions and classes at the top of a module say what they are."""
    bare = []
    for path in sources(folder):
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
            bare.append(relative(path))
        for name, (_, _, text, kind) in definitions(path).items():
            if not text and "." not in name and kind != "Assign":
                bare.append(f"{relative(path)}:{name}")
    assert bare == []


def test_files_stay_small():
    long = {
        relative(p): n for room in ALLOWED for p in sources(ROOT / room) if (n := len(p.read_text().splitlines())) > 400
    }
    assert long == {}


def test_no_machine_paths_or_registry_hosts():
    """Nothing of one machine is in the repository."""
    homes = re.compile(r"(?<![\w.])/(?:work|home|root|farm)/")
    for room in (*ALLOWED, "tests"):
        for path in sources(ROOT / room):
            if path != Path(__file__):
                assert not homes.search(path.read_text(encoding="utf-8")), relative(path)
