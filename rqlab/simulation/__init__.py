"""The laboratory: the production engine in virtual time, while everything goes wrong, and power cuts without a trace.

`run.simulate` is the door. `world` is time, `chance` is chance; `actors` are the simulated processes, and in them the
production workers; `faults` is what breaks, `stage` lets it happen; `ledger` knows what must be stored and `checks`
what must hold; `history` is what happened, and `result` what it came to.

Below it lies the disk: `recorder` writes down what SQLite asks of it while an unmodified store runs; `platter` says
what is on it if the power fails after any of those operations; `recovery` opens what is left and reads it.
"""
