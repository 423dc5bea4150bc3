"""Clock, noise, memory and provenance: each framework runs in a process of its own, behind `worker.Worker`."""
