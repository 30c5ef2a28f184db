"""History to events: reading, sorting, splitting, scaling, and what is refused or warned of before training."""
