"""The laboratory: the production engine under power cuts that leave no trace on the machine it runs on.

Three steps, each a file. `recorder` writes down what SQLite asks of the disk while an unmodified store runs; `platter`
says what is on the disk if the power fails after any of those operations; `recovery` opens what is left and reads it.
Nothing here knows a rule about jobs: what must hold after a cut is for tests and the simulator to say.
"""
