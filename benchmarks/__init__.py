"""Measures the daemon beside its peers, in the same run on the same machine: ``make bench``.

Read ``cases`` for what is measured, ``servers`` and ``disk`` for who takes part, ``load`` for the clients,
``machine`` for what keeps the figures honest, ``report`` for the tables.
"""
