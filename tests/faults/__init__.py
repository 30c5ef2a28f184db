"""Faults on real brokers while daemons serve, judged by `lstmstream verify`. A run without faults fails."""
