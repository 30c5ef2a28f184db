"""The training report: one HTML file that asks no network for anything."""
