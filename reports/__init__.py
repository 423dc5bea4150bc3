"""What people look at: pages, plots and committed results."""
