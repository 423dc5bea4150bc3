"""One file per command of `parallax`; each imports nothing heavy until it runs."""
