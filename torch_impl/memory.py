"""What the framework keeps in memory, measured on a run. Bytes."""

from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(model, function, *args):
    """Bytes that `function(*args)` keeps for its backward pass: every storage once, without the model's parameters."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other tensor comes to lie there
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        function(*args)
    return sum(storage.nbytes() for storage in kept.values())
