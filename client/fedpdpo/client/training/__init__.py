"""A client's local round: what is computed once, the objective's steps, the measuring."""
