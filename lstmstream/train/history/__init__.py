"""History to events: reading, sorting, splitting, scaling, and what is refused or warned about before training starts."""
