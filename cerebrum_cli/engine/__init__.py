"""Token sequences in, events out; conversations, prompt formats and terminals are not known here.

Public modules: `engine`, what all engines do; `requests`, what is asked of them; `loglikelihood`, to score
texts; `local`, the one on this machine; `capacity`, what the machine offers.
"""
