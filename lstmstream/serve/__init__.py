"""Everything the daemon runs on. Nothing here may import torch."""
