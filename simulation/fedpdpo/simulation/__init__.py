"""Many virtual clients on one machine or a Ray cluster, by the same server and client code.

`settings` says what may be set, `partition` who has which pairs, `hosting` how clients take turns
on one backbone, `engine` where they run; `cli` is the command `fedpdpo simulate`.
"""
