"""Log-probabilities of given continuations: a token trie, the steps that evaluate it once, and their execution."""
