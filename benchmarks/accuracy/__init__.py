"""How well `builtin:anomaly` finds anomalies on public benchmarks, beside plain detectors and blind rules."""
