"""What a model is worth: replayed by the serving engine's step, judged, measured with intervals, beside baselines."""
