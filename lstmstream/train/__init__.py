"""From history to a model file: training, tuning and the training report. The only package that imports torch."""
