"""What the compiler plans to keep in memory. Bytes."""


def planned_bytes(program, *args):
    """XLA's plan for the compiled `program(*args)`: arguments, outputs, temporaries, what outputs and donated arguments
    share ("aliased"), and what is needed together ("planned"); None where it has none.

    A plan, not a peak: on a CPU `peak_memory_in_bytes` leaves the temporaries out.
    """
    return plan_of(program.lower(*args).compile())


def plan_of(compiled):
    """The same of what is compiled already."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    parts = {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
    }
    return {**parts, "planned": sum(parts.values()) - 2 * parts["aliased"]}
