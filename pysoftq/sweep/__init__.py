"""Sweeps over (h, w): a grid of runs, kept in a database, done by any number of workers.

`grid` says which runs there are, `ledger` keeps who does which and what came out, `prepare` makes
what they share, `worker` does them, `local` and `cluster` start workers here and on a Ray cluster.
"""
