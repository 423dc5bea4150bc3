"""`parallax parity`: the certificate as a command, a table and a page."""
