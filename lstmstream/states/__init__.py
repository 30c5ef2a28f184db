"""`lstmstream state`: looks at the states of keys as the state topic has them."""
