"""The operator's command `fedpdpo`: the run, and what a client has made of it."""
