"""`lstmstream capacity`: what so many keys and events need, by measuring the model on this machine."""
