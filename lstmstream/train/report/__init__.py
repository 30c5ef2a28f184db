"""The training report: one HTML file that loads nothing from the network."""
