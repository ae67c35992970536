"""Token sequences in, events out. A request carries how its reply is read; prompts are rendered elsewhere.

Public modules: `engine`, what all engines do; `requests`, what is asked of them; `loglikelihood`, to score
texts; `local`, the one on this machine; `capacity`, what the machine offers.
"""
