"""What the framework keeps in memory, measured on a run. Bytes."""

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._tools.mem_tracker import MemTracker


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


class _Tracker(MemTracker):
    """Frozen parameters have no gradients to be followed, and so no hooks."""

    def _track_module_params_and_buffers(self, module, install_grad_hooks=True):
        hooks = self._param_to_grad_hook_handles
        for parameter in module.parameters():
            if not parameter.requires_grad and hooks.get(parameter) is None:
                hooks[parameter] = _NoHook(), _NoHook()
        return super()._track_module_params_and_buffers(module, install_grad_hooks)


class _NoHook:
    def remove(self):
        pass


def live_bytes(held, function, *args):
    """Bytes of all tensors that live at the peak of `function(*args)`, by what they are, and of all ("planned").

    What is `held` is among them: modules, by their parameters, and tensors, at least one. They are those of the device
    where the first of these lies. It is gone through once, so that what the function drops can go.
    """
    devices, tracker = [], _Tracker()

    def seen():
        for one in held:
            devices.extend(t.device for t in (one.parameters() if isinstance(one, torch.nn.Module) else [one]))
            yield one

    tracker.track_external(*seen())
    with tracker:
        function(*args)
    parts = tracker.get_tracker_snapshot("peak")[devices[0]]
    found = {getattr(kind, "value", str(kind)).lower(): size for kind, size in parts.items()}
    return {**found, "planned": found.pop("total")}
