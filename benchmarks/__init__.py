"""How fast rqlab is, as ratios within one run: `make bench`, or `python -m benchmarks --help`.

Machines differ and are shared, so no figure here is asserted by a test. Every round runs all contenders one after the
other, each for the same time; a ratio is of two figures of one round, and what is printed is the median of the rounds
with the lowest and the highest.
"""
