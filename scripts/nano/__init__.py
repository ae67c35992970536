"""The model nano, which answers small sums, mostly correctly: its training and its evaluation."""
