"""What is timed beside the wings: other libraries' models at the same work, plain framework calls as lower bounds."""
