"""Baselines without a recurrent network, evaluated on the same events as the network.

    forecast   last value; mean of the training split; mean of the key so far; linear autoregression; by the clock:
               the value a day, a week or `period_s` ago, where the history of most events reaches back that far
    classify   class frequencies of the training split; logistic regression on the event alone, and with decayed counts
               and means of the key's past
    anomaly    last value, mean and linear autoregression as forecasts, with their scaled error at the event as the
               score; deviation from the key's exponentially weighted mean; distance to the nearest centroid

What is fitted is fitted on the training split alone. A prediction uses the event and its key's past, as the network's
does. Needs numpy only.
"""

from lstmstream.evaluation.baselines.compute import Baselines, compute_baselines

__all__ = ["Baselines", "compute_baselines"]
