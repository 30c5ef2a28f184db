"""`lstmstream demo`: everything on one machine, from nothing to live predictions."""
