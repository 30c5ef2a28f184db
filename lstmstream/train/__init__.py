"""From history to a model. The only home of torch."""
